"""A fine-tuning run of the command line: its settings, and how it is prepared, trained, judged, kept and reported."""
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core import LARGEST_SIDE, InputError, number, one_of, whole
from ..files import user_path
from ..records import known_record, read_record
from .folder import LABELED
from .inputs import encoder_file, held_out, own_data, own_pictures, read_pictures, run_of, split_of, tell_notes
from .job import Job
from .output import console
from .record import surroundings
from .registries import registry
from .resume import check_same, kept_settings
from .rivals import views_of_run
from .settings import check_moments, number_or_name, read_range


@dataclass(frozen=True)
class Tuning:
    "The settings of a fine-tuning run"
    encoder: str = ''               # its file
    data: str = ''                  # the pictures
    labels: str | None = None       # 'all', a share, a number of each class, or a file of names; all if not given
    protocol: str = 'full'
    size: int | None = None         # side of the pictures in pixels; the encoder's if not given
    epochs: int | None = None       # the protocol's if not given
    lr: float | None = None         # of the layer on top, at its peak; the protocol's if not given
    encoder_lr: float | None = None # of the encoder's last block; in the protocol's proportion if not given
    decay: float | None = None      # learning rate of a block over that of the block above it
    batch_size: int | None = None   # the protocol's if not given
    patience: int | None = None     # epochs without a rise on held-out labels that end training; none do if not given
    valid: float | str | None = None # share to judge by, or other pictures; as in the encoder's run if not given
    column: str | None = None       # of a table, that has the pictures
    label_column: str | None = None # and that has their labels
    value_range: str | None = None  # values that become 0 and 1
    precision: str = 'auto'         # of the model's arithmetic
    seed: int | None = None         # of the choice of labels and of all draws; as in the encoder's run if not given
    workers: int | None = None      # processes that decode
    device: str | None = None       # where it trains; a GPU if there is one
    checkpoint: str = 'epoch, 10 minutes' # when the run's whole state is kept
    log: str | None = None          # who else is told of the run


def resolve_tuning(
    given: Mapping[str, Any], # the command's options; None where not given
    begun: Mapping[str, Any], # the settings of the run that goes on, or none
) -> Tuning:
    "The settings of a run. Raises `InputError` for those that can't be, before pictures are read"
    from ..logs import check_logs
    chosen = {key: value for key, value in given.items() if value is not None}
    if chosen.get('encoder'): chosen['encoder'] = str(encoder_file(chosen['encoder']).absolute())
    config = Tuning(**{**begun, **chosen})
    if not config.encoder:
        raise InputError("nothing says whose encoder is to be fine-tuned: give the folder of a run, or an "
                         "encoder.safetensors.")
    config = _from_run(replace(config, valid=number_or_name(config.valid)))
    _check_numbers(config)
    for key in ('data', 'labels', 'valid'):
        if isinstance(path := getattr(config, key), str): user_path(path, f'--{key}')
    read_range(config.value_range)
    one_of(registry('precisions'), precision=config.precision)
    one_of(registry('protocols'), protocol=config.protocol)
    check_moments(config.checkpoint)
    check_logs(config.log)
    return config


def _from_run(config: Tuning) -> Tuning:
    "The settings, with what the run of the encoder knows in place of what was not given"
    folder = run_of(Path(config.encoder))
    record = known_record(folder)
    settings = record.get('settings') or record
    if not config.data: config = replace(config, data=own_data(Path(config.encoder), config.encoder))
    if config.labels is None and own_pictures(record, config.data) and (folder/LABELED).is_file():
        config = replace(config, labels=str((folder/LABELED).absolute()))  # a few labels serve both
    seed = settings.get('seed') if config.seed is None else config.seed
    return replace(config, seed=seed or 0)


def _check_numbers(config: Tuning) -> None:
    whole(optional=True, **{'--epochs': config.epochs, '--patience': config.patience})
    whole(least=2, optional=True, **{'--batch-size': config.batch_size})
    whole(least=2, most=LARGEST_SIDE, optional=True, **{'--size': config.size})
    whole(least=0, optional=True, **{'--seed': config.seed, '--workers': config.workers})
    number(above=0, most=1e30, optional=True, **{'--lr': config.lr})
    number(least=0, most=1e30, optional=True, **{'--encoder-lr': config.encoder_lr})
    number(above=0, most=1, optional=True, **{'--decay': config.decay})
    if not isinstance(config.valid, str): number(least=0, below=1, optional=True, **{'--valid': config.valid})


def read_labels(
    text: str | None, # what --labels takes
) -> int | float | str | None:
    "A number of each class where it is a whole number, a share where it is another; else a name"
    for kind in (int, float):
        with suppress(TypeError, ValueError): return kind(text)
    return text


def check_tuning(
    path: Path,            # a run's folder
    begun: dict[str, Any], # from `begun_with`
    config: Tuning,        # the settings that it is to go on with
) -> None:
    "Raise `InputError`, which names the setting, for one that can't change any more, and for a run that is done"
    check_same(path, begun, config)
    record = read_record(path)
    if record.get('state') != 'finished': return
    done = record.get('epochs_done') or 0
    ended = done < (record.get('epochs') or done)  # by --patience, which more epochs would not change
    if not ended and (config.epochs or 0) > done: return
    longer = '' if ended else f"--epochs more than {done} to go on, or "
    raise InputError(f"{path} is finished: give {longer}another --out and no --resume for a new run.")


def make_classifier(
    config: Tuning,
    folder: Path, # where fastai keeps its files
) -> Any:         # a `ClassifierLearner`
    "The learner of a fine-tuning. Raises `InputError` for settings that can't be"
    from ..evaluate.finetune import classifier_learner
    from ..export import load_encoder
    from ..models import feature_dim
    file = Path(config.encoder)
    encoder = load_encoder(file)
    channels, _, own = encoder.pretrained_cfg['input_size']
    size = config.size or own
    if size != own: feature_dim(encoder, size, channels)  # or say why not, before pictures are read
    given = dict(valid=config.valid, column=config.column, label_column=config.label_column,
                 value_range=read_range(config.value_range), device=config.device, workers=config.workers)
    split = split_of(file, config.data) | {key: value for key, value in given.items() if value is not None}
    # also of what was pretrained without: --unlabelled says that it needs no labels, not that there are none
    split |= _stored(config) | dict(channels=channels, unlabelled=False)
    dls = read_pictures(config.data, 2, size=size, **split)
    return classifier_learner(
        encoder.to(dls.device), dls, read_labels(config.labels), config.protocol, epochs=config.epochs, lr=config.lr,
        bs=config.batch_size, encoder_lr=config.encoder_lr, decay=config.decay, patience=config.patience,
        views=views_of_run(file, None), precision=config.precision, seed=config.seed, path=folder)


def _stored(
    config: Tuning,
) -> dict[str, Any]: # for `read_pictures`
    "At which side pictures are kept: what the encoder's run was given for it goes with its own size alone"
    from ..export import encoder_info
    return {} if config.size in (None, encoder_info(config.encoder)['size']) else dict(store_size=None)


class Finetuning(Job):
    "A fine-tuning under way"
    verb, thing = 'finetune', 'classifier'

    @property
    def epochs(self):
        return self.config.epochs or self.folder.record.get('epochs') if self.learn is None else self.learn.epochs

    def kept_settings(self): return kept_settings(self.config)
    def export(self, path): return self.learn.export(path)
    def trained(self): return self.learn.model

    def work(self):
        from ..artefact import check_free
        from ..export import encoder_info
        from ..logs import check_logs, make_logs
        from ..values import other_range
        check_free(self.folder/self.thing)  # before training, rather than after
        learn = make_classifier(self.config, self.folder.path)
        learn.check_export()
        self.prepare(learn)
        self.unjudged = '' if len(learn.dls.valid) else "no picture of the same classes is set aside to judge by."
        self.begin(_record(self.config, learn))
        self._name_labels()
        console.print(self.announced(), end='')
        tell_notes(learn.dls)
        if note := other_range(encoder_info(self.config.encoder)['extra'], learn.dls.value_range): console.print(note)
        console.print(f"fine-tuning {_nearby(self.config.encoder)} on {self.device}; results in {self.folder}")
        kept = self.config.checkpoint != 'none' or self.goes_on
        cbs = [*([self.keeper] if kept else []), self.history, self.clock]
        learn.fit_protocol([*cbs, *make_logs(check_logs(self.config.log), cbs)], self.folder.path if kept else None)
        self.finish()
        if self.product and not self.unjudged: self.results['classifier'] = self._judged()

    def _name_labels(self):
        data = self.learn.dls.train.data
        names = [*data.names, *(self.learn.stop.held.data.names if self.learn.stop else ())]
        if len(names) < self.learn.known: self.write_labeled(names)

    def _judged(self) -> dict[str, float]:
        "How good it is, from its file: what the user keeps"
        from ..evaluate.knn import extract_features
        from ..export import load_classifier
        dls = self.learn.dls
        model = load_classifier(self.product)
        cfg = model.pretrained_cfg
        scores, y = extract_features(model.to(dls.device), dls.valid, dls.size, cfg['mean'], cfg['std'],
                                     self.learn.precision)
        held = dict(held_out=self.learn.stop.best) if self.learn.stop else {}
        return dict(accuracy=scores.argmax(1).eq(y).double().mean().item(), **held)

    def report(self):
        if self.learn.stop: console.print(self._how_ended(self.learn.stop))
        if self.results:
            n = self.folder.record['n_valid']
            console.print(f"accuracy {self.results['classifier']['accuracy']:.1%} of {n:,} pictures to judge by")
        if self.unjudged: console.print(f"not judged: {self.unjudged}")
        console.print(f"{self.folder.record['seconds']:.0f} seconds; classifier, config.json, history.csv and "
                      f"curves.png are in {self.folder}")

    def _how_ended(self, stop: Any) -> str:
        "Which weights these are, and whether training has ended early"
        early = self.epochs_done < self.epochs
        reason = f": for {stop.patience} epochs it has not risen" if early else ''
        return (f"the weights are those of epoch {self.epochs_done - 1 - stop.waited}, which had {stop.best:.1%} of "
                f"{len(stop.held.data):,} held-out pictures right{reason}")


def _nearby(path: str) -> str:
    "A path, seen from the current folder if it lies there"
    with suppress(ValueError): return str(Path(path).relative_to(Path.cwd()))
    return path


def _record(config: Tuning, learn: Any) -> dict[str, Any]:
    "What config.json says before training"
    from ..models import architecture
    dls, protocol, kept = learn.dls, learn.protocol, kept_settings(config)
    plain = {name: value for name, value in vars(protocol).items() if isinstance(value, str | int | float)}
    # what judges the classifier's encoder later: the run of the one that it began with may be gone by then
    given = {key: kept[key] for key in ('valid', 'column', 'label_column', 'value_range') if kept[key] is not None}
    held = held_out(known_record(run_of(Path(config.encoder))), config.data)
    split = held | given | _stored(config) | dict(unlabelled=False)
    return dict(
        asdict(config), epochs=learn.epochs, lr=learn.peak, batch_size=dls.train.bs, precision=learn.precision,
        arch=architecture(learn.model.encoder), size=dls.size, protocol_values=plain, n_train=len(dls.train.data),
        n_held=len(learn.stop.held.data) if learn.stop else 0, n_valid=len(dls.valid.data), classes=learn.model.classes,
        channels=dls.channels, value_range=dls.value_range, split=split, **surroundings(dls.device))
