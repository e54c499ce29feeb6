"""How good features are, in the words of the command line. An accuracy says little alone: on easy pictures the raw
pixels do well, and so does an encoder that was never trained. So a run's closing table has all three."""
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

# side at most at which raw pixels are features: the 150,528 numbers of a picture of 224 pixels would fill the memory
PIXELS = 32
JUDGED_BATCH = 128  # pictures; the same everywhere, because an accuracy's last digits depend on it


def unjudged(
    bank,  # the `ImageData` of the pictures that classifiers learn from
    valid, # and of those that they are tested on
    unlabelled: bool = False, # has --unlabelled left their labels alone?
) -> str:  # '' if there is no such reason
    "Why pictures can't tell how good features are, as one sentence"
    known = bank.y[bank.y >= 0]
    if not len(known):
        if unlabelled: return "--unlabelled leaves labels alone: name pictures with labels by --valid, or leave it out."
        reason = bank.reason or "the pictures have no labels: put those of each class into a folder of its own"
        return f"{reason}."
    if not len(valid.y[valid.y >= 0]):
        return ("no picture with a label is set aside to judge by: give --valid 0.2, say, "
                "a folder valid/ beside train/, or --valid with others.")
    if len(known.unique()) < 2: return "all pictures are of one class: give two or more."
    return ''


def judge(
    train_h, train_y, # features `[N, D]` and labels `[N]`
    valid_h, valid_y, # `[M, D]` and `[M]`
) -> dict[str, float]: # accuracies in [0, 1] and their labels a class
    "Accuracy of kNN with all labels, and of a linear classifier with (at most) ten labels a class"
    from ..evaluate.knn import knn_accuracy
    from ..evaluate.linear import few_label_accuracy
    features = (train_h, train_y, valid_h, valid_y)
    _, counts = train_y[train_y >= 0].unique(return_counts=True)
    per_class = min(10, counts.min().item())
    mean, std = few_label_accuracy(*features, per_class=per_class)
    return dict(knn=knn_accuracy(*features), few_labels=mean, few_labels_std=std, per_class=per_class)


def results_table(
    results: dict[str, dict[str, float]], # what `judge` said, by whose features
    within: str = '', # the name of the pictures that judge by themselves; '': training's do
) -> Table:
    "A row for each"
    per_class = next(iter(results.values()))['per_class']
    place = f' within {within}' if within else ''
    table = Table('features', f'kNN{place}, all labels',
                  f"linear{place}, {per_class} label{'s' * (per_class > 1)} a class")
    for name, result in results.items():
        table.add_row(name, f"{result['knn']:.1%}", f"{result['few_labels']:.1%} ± {result['few_labels_std']:.1%}")
    return table


def parts(
    dls, # from `read_pictures`
) -> tuple:
    "Loaders of the pictures that classifiers learn from, and of those that they are tested on, in order"
    loaders = dls.bank.ordered(), dls.valid.ordered()
    for dl in loaders: dl.bs = JUDGED_BATCH
    return loaders


def features(
    dls,             # from `read_pictures`
    embed: Callable, # features and labels of a loader
) -> tuple:          # what `judge` takes
    "Features and labels of both parts"
    return tuple(tensor for dl in parts(dls) for tensor in embed(dl))


def file_embedder(
    path: Path, # an encoder's file
) -> Callable:  # features and labels of a loader
    "What an encoder makes of pictures, read from the file that the user keeps"
    from ..evaluate.knn import extract_features
    from ..export import encoder_info, load_encoder
    info, encoder = encoder_info(path), load_encoder(path)
    return lambda dl: extract_features(encoder.to(dl.device), dl, info['size'], info['mean'], info['std'])


def control_results(
    learn, # a `ContrastiveLearner` that wasn't trained yet
) -> dict[str, dict[str, float]]:
    "What `judge` says of raw pixels and of the encoder as it is"
    from ..evaluate.knn import pixels
    side = min(learn.dls.size, PIXELS)
    reduced = f' ({side} x {side})' if side < learn.dls.size else ''
    encoder = 'untrained encoder' if learn.weights_from is None else 'weights as given'
    return {f'raw pixels{reduced}': judge(*features(learn.dls, lambda dl: pixels(dl, side))),
            encoder: judge(*features(learn.dls, learn.embed))}
