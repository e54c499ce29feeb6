"""`fastcontrast eval`: judge an encoder by pictures with labels, alone or beside others."""
from pathlib import Path
from typing import Annotated, Any

from rich.table import Column as TableColumn, Table
from typer import Argument, Option

from ..core import InputError, number_of, whole
from ..files import write_whole
from ..records import known_record
from .inputs import (Column, Device, LabelColumn, encoder_file, names_in, other_split, own_data, own_pictures,
                     range_option, read_pictures, run_of, split_of, tell_notes, tell_undecodable, told_apart,
                     valid_option)
from .judging import features, parts, unjudged
from .output import DRAWINGS, console, out_file
from .rivals import Rival, rival, views_of_run
from .settings import number_or_name, read_range
from .verbs import verb


@verb(30, "fastcontrast eval runs/fast-resnet18-pictures pictures --against untrained,pixels -o table.md", name='eval')
def evaluate(
    encoder: Annotated[str, Argument(help="A run's folder, an exported folder or file, or hf-hub:owner/name")],
    data: Annotated[str | None, Argument(
        help="A folder of class folders of pictures, a .csv file of paths and classes, shards, or 'digits'",
        show_default="the run's own, with its split")] = None,
    against: Annotated[str | None, Option(
        help="Others to stand beside it, with commas between them: runs, encoder files, timm's pretrained ones like "
             "resnet18.a1_in1k, 'untrained' (the same architecture), 'pixels'", show_default="none")] = None,
    valid: Annotated[str | None, valid_option(show_default="as in the run, else 0.2")] = None,
    seed: Annotated[int | None, Option(help="Seed of that split", show_default="as in the run, else 0")] = None,
    draws: Annotated[int, Option(help="How often few labels are drawn")] = 5,
    robust: Annotated[bool, Option(
        '--robust', help="Also judge by the pictures blurred, with noise, grey and turned; each takes one more pass of "
                         "every encoder over them")] = False,
    column: Column = None,
    label_column: LabelColumn = None,
    value_range: Annotated[str | None, range_option(
        show_default="as in the run, if the data are its own or it was given one; else found from a sample")] = None,
    device: Device = None,
    out: Annotated[str | None, Option(
        '--out', '-o', help="Also write the table to this .csv, .json, .md or .tex file, or draw it (.png, .svg, .pdf)"
    )] = None,
    plot: Annotated[str | None, Option(
        help="Also draw accuracies, what labels add, and what is taken for what: a .png, .svg or .pdf file")] = None,
):
    """Judge an encoder by pictures with labels.

    Neighbours, linear classifiers with all labels and with few (mean ± standard deviation over draws of them), and
    retrieval look at its features. Beside each figure of another encoder stands its difference to the first, with the
    standard error of that. Alignment takes two views of each picture that judges, as training made them."""
    from ..evaluate.judge import TABLES
    from ..export import encoder_info
    whole(**{'--draws': draws})
    path = encoder_file(encoder)
    data = own_data(path, encoder) if data is None else data
    first = rival(encoder)
    rivals = told_apart([first, *(rival(name, first) for name in names_in(against))])
    files = [out_file(out, *TABLES, *DRAWINGS)] if out is not None else []
    if plot is not None: files.append(out_file(plot, *DRAWINGS, option='--plot'))
    given = dict(valid=number_or_name(valid), seed=seed, column=column, label_column=label_column,
                 value_range=read_range(value_range))
    # share and seed as given, or as in the encoder's run: another seed holds out pictures that training has seen
    split = split_of(path, data) | {key: value for key, value in given.items() if value is not None}
    if first.channels != 3: split['channels'] = first.channels  # the encoder takes no others
    dls = _pictures(rivals, data, split, device)
    tell_notes(dls)
    for other in rivals:
        for note in _doubts(other, dls, data, split): console.print(f"{other.name}: {note}")
    console.print(f"{first.about}: {len(dls.bank.data):,} pictures to learn the classes from, "
                  f"{len(dls.valid.data):,} to judge by{f', within {dls.within}' if dls.within else ''}")
    kind = views_of_run(path)
    results, left_out = _judged_each(rivals, dls, kind, robust, draws)
    console.print(_table(results))
    about = dict(data=data, draws=draws, n_train=len(dls.bank.data), n_valid=len(dls.valid.data), views=kind,
                 changes=_changes(dls.channels) if robust else {}, encoder_sha256=encoder_info(path)['sha256'], **split)
    console.print(f"alignment is of two views by {kind}")
    for change, words in about['changes'].items(): console.print(f"linear under {change}: {words}")
    for reason in left_out: console.print(f"left out: {reason}")
    tell_undecodable(dls)
    for file in files: _write(file, results, about)


def _pictures(
    rivals: list[Rival],
    data: str,
    split: dict[str, Any], # how they are read and divided
    device: str | None,
):                         # their `DataLoaders`
    "The pictures that judge. Raises `InputError` where they can't, or an encoder takes others"
    dls = read_pictures(data, 2, size=max(other.size for other in rivals), device=device, **split)
    for other in rivals:
        if dls.channels == other.channels: continue
        raise InputError(f"{other.name} takes pictures with {other.channels} channels, and those of {data} have "
                         f"{dls.channels}: give others, or another encoder.")
    reason = unjudged(dls.bank.data, dls.valid.data)
    if reason: raise InputError(f"{data} can't judge an encoder: {reason}")
    return dls


def _doubts(
    other: Rival,
    dls,       # from `read_pictures`
    data: str, # what it was given…
    split: dict[str, Any], # …and how they were divided
) -> list[str]:
    "What is to be said of an encoder that saw pictures otherwise, or was trained on some that judge it"
    from ..values import other_range
    record = known_record(run_of(other.file)) if other.file else {}
    tuned = record.get('verb') == 'finetune' and own_pictures(record, data)
    labels = "it was tuned with labels of these data, which its rows of few labels do not count" if tuned else ''
    notes = other.note, other_range(other.extra, dls.value_range), other_split(other.file, data, split), labels
    return [note for note in notes if note]


def _judged_each(
    rivals: list[Rival],
    dls,         # this and the others as `_judged` takes them
    kind: str,
    robust: bool,
    draws: int,
) -> tuple[dict[str, dict[str, Any]], list[str]]: # by name; and what was left out, in sentences
    "All encoders, but for those beside the first that can't be judged"
    results: dict[str, dict[str, Any]] = {}
    left_out: dict[str, None] = {}  # each once
    for other in rivals:
        try: results[other.name], reasons = _judged(other, dls, kind, robust, draws)
        except InputError as e:  # as of a run that has diverged: what others have is not lost
            if other is rivals[0]: raise
            reasons = [f"{other.name}: {e}"]
        left_out |= dict.fromkeys(reasons)
    if robust and dls.channels != 3:
        left_out[f"linear under grey: the pictures have {number_of(dls.channels, 'channel')}, "
                 "and colour is what three make."] = None
    return results, [*left_out]


def _judged(
    other: Rival,
    dls,         # from `read_pictures`
    kind: str,   # of the views that alignment looks at
    robust: bool, # also by changed pictures
    draws: int,
) -> tuple[dict[str, Any], list[str]]: # what `judge_features` says
    "One encoder by one embedding of the pictures, and of what is made of those that judge"
    from ..evaluate.judge import judge_features
    from ..evaluate.robust import changed_features, view_features
    _, valid = parts(dls)
    views = view_features(other.embed, valid, other.size, kind)
    changed = changed_features(other.embed, valid, other.size, dls.channels) if robust else {}
    return judge_features(*features(dls, other.embed), draws=draws, views=views, changed=changed,
                          classes=dls.bank.data.classes)


def _changes(channels: int) -> dict[str, str]:
    "What is done to the pictures, by name"
    from ..evaluate.robust import changes_of
    return {name: change.about for name, change in changes_of(channels).items()}


def _write(file: Path, results: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    "The table, or the drawing, by the ending of the file's name"
    from ..evaluate.judge import TABLES
    if file.suffix.lower() in DRAWINGS:
        from ..evaluate.score_plot import plot_scores
        plot_scores(results, file)
        return console.print(f"the drawing is in {file}")
    write_whole(file, TABLES[file.suffix.lower()](results, **about))
    console.print(f"results in {file}")


def _table(results: dict[str, dict[str, Any]]) -> Table:
    "A row for each measure, a column for each encoder"
    from ..evaluate.judge import wide_table
    rows = wide_table(results)
    table = Table(rows.index.name, *(TableColumn(name, justify='right') for name in rows))
    for measure, *cells in rows.itertuples(): table.add_row(measure, *cells)
    return table
