"""fastai's habits: what a user writes, and whether it works on a contrastive learner or what is said instead.

`test_habits.py` runs each row; `python tests/habits.py` writes the table into the page, where a test looks for it.
"""
import ast
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1]/'nbs/022_fastai_habits.ipynb'
BEGIN, END = '<!-- habits: python tests/habits.py -->', '<!-- end -->'


@dataclass(frozen=True)
class Habit:
    "A row of the table"
    writes: str     # lines of Python; `dls` and `learn` are there, and all that fastai and fastcontrast export
    works: str = '' # what to know of it; '' if it doesn't work
    says: str = ''  # the sentence that is raised instead
    true: str = ''  # an expression that holds afterwards; `result` is the value of the last line
    shows: str = '' # what is printed, among others
    needs: str = '' # a package, without which the row is not run

    @property
    def installed(self) -> bool: return not self.needs or find_spec(self.needs) is not None

    def run(self, space: dict[str, Any]) -> Any:
        "The value of the last line, where that is an expression"
        *lines, last = ast.parse(self.writes).body
        exec(compile(ast.Module(lines, []), 'habit', 'exec'), space)
        if isinstance(last, ast.Expr): return eval(compile(ast.Expression(last.value), 'habit', 'eval'), space)
        return exec(compile(ast.Module([last], []), 'habit', 'exec'), space)

    def row(self) -> str:
        code = '<br>'.join(f'`{line}`' for line in self.writes.splitlines())
        return f"| {code} | {'works: ' + self.works if self.works else '“' + self.says.replace('|', '&#124;') + '”'} |"


_NO_PREDICTIONS = ("a contrastive model has no predictions to give: use learn.embed(dl) for the features of "
                   "pictures.")
_NO_MIX = (" mixes pictures and their labels, and a contrastive step has no labels to mix: leave it out; views= takes "
           "any module that augments a batch of pictures.")

HABITS = dict(
    data=[
        Habit('dls.show_batch()', "pictures before views are made of them, with the classes that training may know",
              true="len(result.axes) == 9 and result._repr_png_().startswith(b'\\x89PNG')"),
        Habit('dls.vocab, dls.c', "the classes, and how many", true="result == ([str(i) for i in range(10)], 10)"),
        Habit('x, y = dls.one_batch()', "plain tensors on the device, pictures as bytes",
              true="x.dtype == torch.uint8 and len(x) == len(y) == dls.bs and type(x) is torch.Tensor"),
        Habit('dls.test_dl(files)', says="there is nothing to predict for a contrastive learner, so no test_dl: "
              "embed(learn.model.encoder, pictures) gives the features of any pictures."),
        Habit("image_dls('digits', bs=9999)", "a batch is the largest that fits, with a note",
              true="result.bs == 1400", shows="a batch has 1400 pictures, as there are 1400 to train on"),
    ],
    fits=[
        Habit('learn.summary()', "the layers of encoder and head, what a picture becomes, what trains them",
              true="'encoder.' in result and 'projector.' in result and 'parameters' in result"),
        Habit('learn.lr_find()', "all is afterwards as it was before, also places in the data and all draws",
              true="1e-7 < result.valley < 10 and learn.opt is None"),
        Habit('learn.fit(2, 1e-3)', "without a schedule", true="len(learn.recorder.values) == 2"),
        Habit('learn.fit_one_cycle(2, 1e-3)', "`learn.fit_contrastive(2)` has the method's own schedule",
              true="len(learn.recorder.values) == 2"),
        Habit('learn.fit_one_cycle(2, slice(1e-4, 1e-3))', says="lr_max=slice(0.0001, 0.001, None) has several "
              "learning rates, and the groups of parameters are those with and without weight decay, no layers: give "
              "one number."),
        Habit('learn.fit_flat_cos(2, 1e-3)', "as in fastai", true="len(learn.recorder.values) == 2"),
        Habit('learn.fit_sgdr(1, 2, 1e-3)', "as in fastai", true="len(learn.recorder.values) == 2"),
        Habit('learn.fine_tune(2)', says="a contrastive learner has no classes to be tuned for: "
              "learn.finetune(labels=…) trains a classifier from its encoder, and learn.fit_contrastive(n) goes on "
              "with this one."),
        Habit('learn.freeze()', says="the groups of parameters are those with and without weight decay, no layers to "
              "be frozen: contrastive_learner(head_epochs=…) keeps the encoder as it is while the head learns."),
        Habit('learn.unfreeze()', "nothing is frozen", true="learn.opt.frozen_idx == 0"),
        Habit('learn.to_bf16().fit(1, 1e-3)', "also on a CPU with instructions for it; `to_fp16()` on a GPU",
              true="learn.precision == 'bf16'"),
        Habit('with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)', "nothing is printed", true="not printed"),
        Habit('learn.show_training_loop()', "as in fastai", shows="after_pred"),
    ],
    results=[
        Habit('learn.fit(1, 1e-3)\nlearn.recorder.plot_loss()', "that of training, as there is no other",
              true="len(result.lines) == 1"),
        Habit('learn.recorder.plot_loss(with_valid=True)', says="there is no validation loss to draw: leave with_valid "
              "out, and look at the epoch table, which has what is measured instead."),
        Habit('learn.fit_contrastive(1)\nlearn.recorder.plot_sched()', "as in fastai",
              true="len(learn.recorder.hps['lr']) == len(dls.train)"),
        Habit('learn.validate()', "the epoch table's columns but the loss: kNN accuracy, spread, RankMe",
              true="len(result) == 3 and 0 < result[0] <= 1"),
        Habit('learn.show_results()', "validation pictures beside their nearest neighbours in the training part",
              true="len(result.axes) == 6 * 9"),
        Habit('learn.show_views()', "pictures beside the views of them, in any Jupyter",
              true="result._repr_png_().startswith(b'\\x89PNG')"),
        Habit('learn.get_preds()', says=_NO_PREDICTIONS),
        Habit('learn.predict(x)', says=_NO_PREDICTIONS),
        Habit('learn.tta()', says=_NO_PREDICTIONS),
        Habit('ClassificationInterpretation.from_learner(learn)', says=_NO_PREDICTIONS),
        Habit("learn.save('a')\nlearn.load('a')", "model and optimizer", true="(learn.path/'models/a.pth').exists()"),
        Habit("learn.export('x.pkl')", says="'x.pkl' would be a pickle, as fastai's learners are, and nothing is "
              "pickled here: give the name of a folder, like 'encoder', which load_encoder (load_classifier) reads; "
              "learn.save and learn.load keep a whole model."),
    ],
    callbacks=[
        Habit('learn.fit(3, 1e-3, cbs=SaveModelCallback())', "it watches kNN; without labels, the training loss",
              true="(learn.path/'models/model.pth').exists()", shows="SaveModelCallback watches knn"),
        Habit('learn.fit_contrastive(9, cbs=EarlyStoppingCallback())', "watches the same",
              shows="EarlyStoppingCallback watches knn"),
        Habit("learn.fit(2, 1e-3, cbs=EarlyStoppingCallback('accuracy'))", says="EarlyStoppingCallback watches "
              "'accuracy', and the epoch table has no such column: give monitor one of train_loss, knn, spread, "
              "rankme."),
        Habit("learn.fit(2, 1e-3, cbs=ReduceLROnPlateau())", "watches the same; in a fit without a schedule",
              shows="ReduceLROnPlateau watches knn"),
        Habit('learn.fit_contrastive(2, cbs=ReduceLROnPlateau())', says="ReduceLROnPlateau lowers the learning rate, "
              "and the schedule of this fit sets it anew in every step: train by learn.fit(n, lr), which has none, or "
              "leave it out."),
        Habit('learn.fit(1, 1e-3, cbs=ShowGraphCallback())', "draws the training loss in notebooks, and says so "
              "elsewhere", shows="ShowGraphCallback draws in notebooks"),
        Habit('learn.fit(2, 1e-3, cbs=CSVLogger())', "every column of the epoch table",
              true="list(pd.read_csv(learn.path/'history.csv').columns) == list(learn.recorder.metric_names)"),
        Habit('learn.fit(1, 1e-3, cbs=TensorBoardCallback())', "losses, rates and columns; no graph, no predictions",
              needs='tensorboard', true="list(Path('runs').rglob('events*'))"),
        Habit('wandb.init()\nlearn.fit(1, 1e-3, cbs=WandbCallback())', "losses, rates and columns; no predictions",
              needs='wandb',
              true="wandb.run.summary['knn'] == learn.recorder.values[-1][1] "
              "and wandb.config['batch size'] == str(dls.bs)"),
        Habit('learn.fit(1, 1e-3, cbs=GradientClip(0.1))', "as in fastai", true="len(learn.recorder.values) == 1"),
        Habit('learn.fit(2, 1e-3, cbs=ShortEpochCallback())', "its epochs have rows as others have",
              true="len(learn.recorder.losses) == 2 and all(len(row) == 4 for row in learn.recorder.values)"),
        Habit('learn.fit(1, 1e-3, cbs=TerminateOnNaNCallback())', "a loss that is no number ends a fit anyway, "
              "with the reason", true="len(learn.recorder.values) == 1"),
        Habit('learn.fit(1, 1e-3, cbs=BnFreeze())', "as in fastai", true="len(learn.recorder.values) == 1"),
        Habit('learn.fit(1, cbs=MixUp())', says='MixUp' + _NO_MIX),
        Habit('learn.fit(1, cbs=CutMix())', says='CutMix' + _NO_MIX),
        Habit("contrastive_learner(dls, 'test_resnet', cbs=GradientAccumulation())",
              says="GradientAccumulation sums the losses of small batches, each with its own few negatives, which is "
              "not the loss of the large batch: give contrastive_learner(…, accumulate=k), which has it, instead."),
    ],
    optimizers=[
        Habit("learn = contrastive_learner(dls, 'test_resnet', simclr(opt=torch.optim.AdamW, lr=1e-3))\n"
              "learn.fit_contrastive(1)", "any class of PyTorch's; `opt_args=dict(…)` are its arguments",
              true="type(learn.opt.opt) is torch.optim.AdamW"),
        Habit("learn = contrastive_learner(dls, 'test_resnet', simclr(opt=ranger, lr=1e-3))\nlearn.fit_contrastive(1)",
              "any `opt_func` of fastai's", true="type(learn.opt).__name__ == 'Lookahead'"),
        Habit("opt = partial(OptimWrapper, opt=torch.optim.RAdam)\n"
              "learn = contrastive_learner(dls, 'test_resnet', simclr(opt=opt, lr=1e-3))\nlearn.fit_contrastive(1)",
              "the same", true="type(learn.opt.opt) is torch.optim.RAdam"),
        Habit("contrastive_learner(dls, 'test_resnet', simclr(opt=torch.optim.LBFGS))",
              says="opt=LBFGS takes the loss several times a step, which draws views once: give another optimizer, "
              "like torch.optim.AdamW."),
    ],
    logs=[
        Habit("learn.fit_contrastive(2, log='csv')", "the epoch table in `history.csv`, with which a run that is taken "
              "up goes on", true="(learn.path/'history.csv').read_text().count('\\n') == 3"),
        Habit("learn.fit_contrastive(1, log='tensorboard')", "event files in the run's folder `tensorboard`",
              needs='tensorboard', true="list((learn.path/'tensorboard').glob('events*'))"),
        Habit("learn.fit_contrastive(1, log='wandb')", "a run of Weights & Biases, called like the folder",
              needs='wandb', true="list((learn.path/'wandb').glob('offline-run-*'))"),
        Habit("learn.fit_contrastive(1, log='mlflow')", "a run of MLflow, in `mlflow.db` if not said where",
              needs='mlflow', true="list((learn.path/'mlruns').rglob('views.png'))"),
    ])

TITLES = dict(data='The data', fits='Training', results='Looking at results', callbacks="fastai's callbacks",
              optimizers='Optimizers', logs='Logs')


def table() -> str:
    "The table as the page has it"
    parts = []
    for name, rows in HABITS.items():
        parts += ['', f'### {TITLES[name]}', '', '| you write | it |', '|---|---|', *(row.row() for row in rows)]
    return '\n'.join([*parts, ''])


def on_the_page() -> str:
    "The table that is there"
    text = ''.join(line for cell in json.loads(PAGE.read_text())['cells'] for line in cell['source'])
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    "Write the table into the page"
    page = json.loads(PAGE.read_text())
    for cell in page['cells']:
        text = ''.join(cell['source'])
        if BEGIN not in text: continue
        text = text.partition(BEGIN)[0] + BEGIN + table() + END + text.partition(END)[2]
        cell['source'] = text.splitlines(keepends=True)
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__': main()
