"""A pretraining run of the command line: prepared, trained, judged, kept in its folder and reported."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import VIEWS
from ..signals import Interrupted, Signals
from .folder import RunFolder
from .inputs import read_pictures, tell_notes, tell_undecodable
from .job import Job, carry_out, make_keeper
from .judging import control_results, features, file_embedder, judge, results_table, unjudged
from .launch import meet
from .output import console
from .problems import wants_memory
from .record import record_of
from .resume import kept_settings
from .settings import Run, check_names, number_or_name, parse_loss, parse_method, parse_speedups, read_range


@dataclass
class Training(Job):
    "A pretraining under way"
    kept: Any = None           # the `KeptStart` of a run whose checkpoint takes the place of its --weights
    cost: Any = None           # a `Cost`

    verb, thing, suffix = 'pretrain', 'encoder', '.safetensors'

    def kept_settings(self): return kept_settings(self.config, self.folder.before.get('settings'))
    def work(self): _run(self)
    def export(self, path): return self.learn.export(path)

    def trained(self): return self.learn.model.encoder
    def doubts(self): return [*self.learn.doubts, *self.learn.collapse.warnings]
    def measures(self): return dict(cost=self.cost.totals())
    def report(self): _report(self)

    def but_with(self, problem):
        if self.learn is None or not wants_memory(problem): return ''
        share, chunks = self.learn.dls.train.share, self.learn.plan.chunks
        more = next((parts for parts in range(chunks + 1, share // 2 + 1) if share % parts == 0), None)
        return f' --accumulate {more}' if more else ''


def make_learner(
    config: Run,
    folder: Path | None, # where fastai keeps its files
    kept: Any = None,    # a `KeptStart` in place of --weights
) -> Any:                # a `ContrastiveLearner`
    "The learner of a training. Raises `InputError` for settings that can't be"
    import torch
    from ..learner import contrastive_learner
    check_names(config, read=kept is None)
    meet()
    torch.manual_seed(config.seed)
    dls = read_pictures(config.data, config.batch_size, size=config.size, labels=number_or_name(config.labels),
                        valid=config.valid, seed=config.seed, workers=config.workers,
                        cache=config.cache_folder or config.cache, unlabelled=config.unlabelled, column=config.column,
                        label_column=config.label_column, store_size=config.store_size,
                        channels=config.channels, value_range=read_range(config.value_range), device=config.device)
    return contrastive_learner(
        dls, config.arch, parse_method(config.method, config.setting), loss=parse_loss(config.loss),
        cbs=parse_speedups(config.speedups), small_input=config.small_input, weights=kept or config.weights,
        head_epochs=config.head_epochs, precision=config.precision, compile=config.compile,
        accumulate=config.accumulate, stop_on_collapse=config.stop_on_collapse, path=folder)


def fit(
    learn, # from `make_learner`
    config: Run,
    folder: Path | None, # for checkpoints; None: without. The first process says which one it is
    keeper,    # from `make_keeper`
    cbs: list, # other callbacks
) -> None:
    "Train, from the newest checkpoint on if there is one: alike in all processes"
    from ..distributed import gather_objects
    folder = gather_objects(folder)[0]
    kept = [] if folder is None else [keeper]
    learn.fit_contrastive(config.epochs, lr=config.lr, cbs=[*kept, *cbs], resume=folder, schedule=config.schedule,
                          log=config.log)


def accompany(
    config: Run,
    kept: Any = None, # a `KeptStart` in place of --weights
) -> None:
    "What all processes but the first do: train"
    from ..evaluate.cost import Cost
    learn = make_learner(config, None, kept)
    try: fit(learn, config, None, make_keeper(config), [Cost()])
    except Interrupted:
        if not learn.train_iter: raise
        # the first process keeps what there is, and says how it ended


def train(
    config: Run,
    folder: RunFolder,
    signals: Signals,
    kept: Any = None, # a `KeptStart` in place of --weights
) -> None:
    "A whole run. Raises `Ended` if it ended early, after all that it has was kept"
    carry_out(Training(config, folder, signals, kept=kept))


def _run(training: Training) -> None:
    _prepare(training)
    _draw_views(training)
    _announce(training)
    _judge_controls(training)
    kept = training.config.checkpoint != 'none' or training.goes_on
    fit(training.learn, training.config, training.folder.path if kept else None, training.keeper,
        [training.history, training.clock, training.cost])
    training.finish()
    # from its file, so that the table is true of what the user keeps, and `eval` says the same
    if training.product and not training.unjudged:
        training.results['trained encoder'] = judge(*features(training.learn.dls, file_embedder(training.product)))


def _prepare(training: Training) -> None:
    "Make the learner, and write what is known before it trains"
    from ..evaluate.cost import Cost
    config = training.config
    learn = make_learner(config, training.folder.path, training.kept)
    training.prepare(learn)
    training.cost = Cost()
    training.unjudged = unjudged(learn.dls.bank.data, learn.dls.valid.data, config.unlabelled)
    record = record_of(config, learn)
    training.begin(record)
    data = learn.dls.train.data
    if 0 < record['n_labeled'] < len(data):
        training.write_labeled(name for name, known in zip(data.names, data.labeled) if known)


def _draw_views(training: Training) -> None:
    if training.goes_on and (training.folder/VIEWS).exists(): return
    training.learn.show_views(path=training.folder/VIEWS)


def _announce(training: Training) -> None:
    dls, processes = training.learn.dls, training.folder.record['processes']
    to_judge = f", {len(dls.valid.data):,} to judge by" if len(dls.valid) else ''
    if dls.within: to_judge += f" within {dls.within}"
    together = f" in {processes} processes" if processes > 1 else ''
    console.print(training.announced(), end='')
    tell_notes(dls)
    small = training.folder.record.get('small_input')
    stem = " with the stem for small pictures" if small else ''
    console.print(f"{len(dls.train.data):,} pictures to train on{to_judge}; "
                  f"{training.config.arch}{stem} on {training.device}{together}; results in {training.folder}")
    tell_undecodable(dls)
    if training.unjudged: console.print(f"the encoder will not be judged: {training.unjudged}")


def _judge_controls(training: Training) -> None:
    "Raw pixels and the untrained encoder; of a run that goes on they are known already"
    config, folder = training.config, training.folder
    known = folder.before.get('results') if training.goes_on else None
    training.results.update({name: result for name, result in (known or {}).items() if name != 'trained encoder'})
    if training.results or not config.controls or training.unjudged or training.kept: return
    encoder = 'the untrained encoder' if config.weights is None else 'the weights as given'
    console.print(f"judging raw pixels and {encoder}, to compare with")
    training.results.update(control_results(training.learn))
    folder.save(results=training.results)


def _report(training: Training) -> None:
    if training.results: console.print(results_table(training.results, training.learn.dls.within))
    if training.unjudged: console.print(f"not judged: {training.unjudged}")
    console.print(f"{training.folder.record['seconds']:.0f} seconds; encoder.safetensors, config.json, history.csv, "
                  f"curves.png and views.png are in {training.folder}")
