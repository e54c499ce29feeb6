"""`fastcontrast embed`: what an encoder sees in pictures, as a file, a map, a search, or lists of what stands out."""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from ..core import InputError, number, number_of, whole
from ..files import user_path, write_whole
from .inputs import (Column, Device, LabelColumn, encoder_file, range_option, read_pictures, split_of, tell_notes,
                     tell_undecodable, unlabelled_option)
from .output import DRAWINGS, console, out_file
from .settings import read_range
from .verbs import verb

ROWS = 20  # of a table on the screen


@dataclass(frozen=True)
class _Asked:
    "What is to be made of features, checked"
    out: Path | None
    map: Path | None
    method: str
    thumbnails: bool
    search: str | None
    top: int
    grid: Path | None
    duplicates: bool
    threshold: float
    outliers: int | None
    tables: Path | None  # a folder

    def lists(self) -> dict[str, Any]:
        "The tables that are asked for, by the names of their files"
        return {name: asked for name, asked in dict(found=self.search, duplicates=self.duplicates,
                                                    outliers=self.outliers).items() if asked}

    def draws(self, labelled: bool) -> bool:
        "Whether that takes the pictures themselves"
        return bool(self.grid or self.map and (self.thumbnails or not labelled))


@verb(35, "fastcontrast embed runs/fast-resnet18-pictures pictures -o features.parquet --map map.png --duplicates")
def embed(
    encoder: Annotated[str, Argument(
        help="A run's folder, an exported folder or file, or hf-hub:owner/name; or features that were written before "
             "(.npz, .csv, .parquet)")],
    data: Annotated[str | None, Argument(
        help="A folder of pictures, a .csv file of their paths, shards, or 'digits'; with features it is needed only "
             "where pictures are drawn", show_default=False)] = None,
    out: Annotated[str | None, Option(
        '--out', '-o', help="Write the features to this .npz, .csv or .parquet file",
        show_default="features.npz, if nothing else is asked for")] = None,
    map_file: Annotated[str | None, Option(
        '--map', metavar='FILE', help="Draw a map of all pictures to this .png, .svg or .pdf file")] = None,
    map_method: Annotated[str | None, Option(
        help="How: pca, tsne (minutes beyond ten thousand pictures), or umap, if umap-learn is installed",
        show_default='pca')] = None,
    thumbnails: Annotated[bool, Option(
        '--thumbnails', help="Draw pictures on the map, as is done where they have no labels, and not points")] = False,
    search: Annotated[str | None, Option(
        metavar='PICTURE', help="List the pictures that are most like this one, a file")] = None,
    top: Annotated[int | None, Option(help="How many of them", show_default='10')] = None,
    grid: Annotated[str | None, Option(
        metavar='FILE', help="Draw them to this .png, .svg or .pdf file; without --search, those of a few pictures "
                             "of the data")] = None,
    duplicates: Annotated[bool, Option(
        '--duplicates', help="List pictures that have near copies, and those of train and valid both")] = False,
    threshold: Annotated[float | None, Option(
        help="Similarity of near copies, from 0 to 1", show_default="0.99")] = None,
    outliers: Annotated[int | None, Option(
        metavar='N', help="List so many pictures that are farthest from their ten nearest neighbours")] = None,
    tables: Annotated[str | None, Option(
        metavar='FOLDER', help="Write the lists that are asked for into this folder, in full: found.csv, "
                               "duplicates.csv, outliers.csv")] = None,
    by: Annotated[str | None, Option(
        '--encoder', metavar='RUN', help="With features, the encoder that they are of, to search for a file; without "
                                         "it --search takes the name of one of the pictures")] = None,
    unlabelled: Annotated[bool | None, unlabelled_option(show_default="as in the run")] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    value_range: Annotated[str | None, range_option(
        show_default="as in the run, else found from a sample of the pictures")] = None,
    device: Device = None,
):
    """Write what an encoder sees in pictures, draw a map of them, search them, and list near copies and outliers.

    A row of features for each picture is computed once, and what is asked for is made of it: pictures that are alike
    have features that point in the same direction. A .npz has the arrays features, names, parts and labels; a .csv a
    column for each feature; a .parquet, which needs pyarrow, one column of lists."""
    from ..embed import SUFFIXES
    from ..search import COPY
    # the run of a table has a folder that may be called like it
    stored = Path(encoder).suffix.lower() in SUFFIXES and not user_path(encoder, 'encoder').is_dir()
    given = dict(unlabelled=unlabelled, column=column, label_column=label_column, value_range=read_range(value_range),
                 device=device)
    given = {key: value for key, value in given.items() if value is not None}
    if not any((out, map_file, search, grid, duplicates, outliers)):
        if stored: raise InputError("say what to make of the features: --map, --search, --grid, --duplicates, "
                                    "--outliers, or -o.")
        out = 'features.npz'
    _goes_with('--map-method', map_method, map_file, '--map')
    _goes_with('--thumbnails', thumbnails, map_file, '--map')
    _goes_with('--top', top, search or grid, '--search or --grid')
    _goes_with('--threshold', threshold, duplicates, '--duplicates')
    _goes_with('--encoder', by, stored and search, 'features and --search')
    _goes_with('--device', device, not stored, 'an encoder in place of features')
    _goes_with('--tables', tables, search or duplicates or outliers, '--search, --duplicates or --outliers')
    asked = _Asked(
        out_file(out, *SUFFIXES) if out else None, _drawing(map_file, '--map'), map_method or 'pca', thumbnails, search,
        10 if top is None else top, _drawing(grid, '--grid'), duplicates, COPY if threshold is None else threshold,
        outliers, None if tables is None else user_path(tables, '--tables'))
    _check(asked)
    embedded, query, dls = (_from_features(encoder, data, by, asked, given) if stored else
                            _from_run(encoder, data, asked, given))
    _make(asked, embedded, query)
    if dls is not None: tell_undecodable(dls)


def _goes_with(option: str, value: Any, use: Any, others: str) -> None:
    "Raise `InputError` for an option that is given without those that it is of use with"
    if value not in (None, False) and not use:
        raise InputError(f"{option} goes with {others}: ask for that, or leave it out.")


def _drawing(path: str | None, option: str) -> Path | None:
    return None if path is None else out_file(path, *DRAWINGS, option=option)


def _check(asked: _Asked) -> None:
    "Raise `InputError` for what can't be made, before pictures are read"
    from ..embed import features_file
    from ..evaluate.neighbours import check_plane
    if asked.out: features_file(asked.out)
    check_plane(asked.method)
    whole(**{'--top': asked.top})
    whole(optional=True, **{'--outliers': asked.outliers})
    number(above=0, most=1, **{'--threshold': asked.threshold})
    for name in asked.lists() if asked.tables else (): out_file(asked.tables/f'{name}.csv', '.csv', option='--tables')


def _from_run(encoder: str, data: str | None, asked: _Asked, given: dict[str, Any]):
    "Features of pictures, those of the picture that is searched for, and the loaders"
    from ..embed import check_names, embed, embed_picture, picture_file
    from ..export import load_encoder
    path = encoder_file(encoder)
    if data is None: raise InputError("the pictures are missing: give their folder, or 'digits', behind the encoder.")
    if asked.search: picture_file(asked.search)  # before others are read
    model = load_encoder(path)
    channels, size = model.pretrained_cfg['input_size'][0], model.pretrained_cfg['input_size'][-1]
    # the same value means the same as in training, also of other pictures
    seen = {} if model.value_range is None else dict(value_range=model.value_range)
    settings = split_of(path, data) | seen | given | dict(valid=0., channels=channels, training=False)
    dls = read_pictures(data, 2, size=size, **settings)
    if asked.out and asked.out.suffix.lower() == '.parquet':  # before the work
        for loader in dls.loaders: check_names(loader.data.names, loader.data.classes)
    model = model.to(dls.device)
    query = embed_picture(model, asked.search, value_range=dls.value_range) if asked.search else None
    tell_notes(dls)
    return embed(model, dls), query, dls


def _from_features(path: str, data: str | None, by: str | None, asked: _Asked, given: dict[str, Any]):
    "The same of features that were saved; the query is a row if no encoder is given, the loaders None where none draws"
    from ..embed import embed_picture, load_embedded, picture_file
    from ..export import load_encoder
    embedded, query, dls = load_embedded(path), None, None
    if asked.grid and data is None or asked.thumbnails and asked.map and data is None:
        raise InputError("--grid and --thumbnails draw pictures, and features have none: give the folder behind them.")
    if by: picture_file(asked.search)  # before others are read
    model = load_encoder(encoder_file(by)) if by else None
    if data is not None and asked.draws(bool(embedded.classes)):
        seen = {}
        if model is not None: seen = dict(channels=model.pretrained_cfg['input_size'][0], value_range=model.value_range)
        dls = read_pictures(data, 2, **dict(valid=0., training=False) | seen | given)
        embedded = embedded.with_pictures(dls)
    if model is not None:
        query = embed_picture(model, asked.search, value_range=dls.value_range if dls else given.get('value_range'))
    elif asked.search: query = [embedded.row(asked.search)]
    if dls is not None: tell_notes(dls)
    return embedded, query, dls


def _make(asked: _Asked, embedded, query) -> None:
    "Write, draw and list what was asked for"
    from ..search import draw_map, duplicates, outliers, retrieval_grid
    if asked.out:
        embedded.save(asked.out)
        console.print(f"{len(embedded):,} pictures, {embedded.features.shape[1]:,} features each, are in {asked.out}")
    if asked.map:
        draw_map(embedded, asked.map, asked.method, asked.thumbnails or None)
        console.print(f"a map of {len(embedded):,} pictures is in {asked.map}")
    if query is not None:
        similarity, rows = embedded.nearest_to(query, asked.top)
        _tell('found', embedded.found(similarity[0], rows[0]), asked)
    if asked.grid:
        retrieval_grid(embedded, 6 if query is None else query, asked.top, asked.grid)
        console.print(f"the nearest pictures are drawn in {asked.grid}")
    if asked.duplicates:
        table = duplicates(embedded, asked.threshold)
        console.print(_of_copies(table, len(embedded), asked.threshold))
        _tell('duplicates', table, asked)
    if asked.outliers: _tell('outliers', outliers(embedded, asked.outliers), asked)


def _of_copies(table, n: int, threshold: float) -> str:
    "How many there are, in a sentence"
    least = f"a similarity of {threshold:g} or more"
    if table.empty: return f"no two pictures have {least}"
    said = f"{len(table):,} of {n:,} pictures have near copies ({least}), in {number_of(table['group'].max(), 'group')}"
    if table['leak'].any(): said += f"; {table['leak'].sum():,} are in groups of train and valid both"
    if 2 * len(table) > n: said += "; to this encoder most pictures look alike: give a higher --threshold"
    return said


def _tell(name: str, table, asked: _Asked) -> None:
    "The first rows of a table on the screen, and all of it in a file"
    if asked.tables:
        file = asked.tables/f'{name}.csv'
        write_whole(file, table.to_csv(index=False))
    if len(table):
        console.print(_screen(name, table))
        if len(table) > ROWS: console.print(f"… and {len(table) - ROWS:,} more{'' if asked.tables else ': --tables'}")
    if asked.tables: console.print(f"{name}: {len(table):,} rows in {file}")


def _screen(name: str, table) -> Table:
    "What does not vary in the parts of a data set that has one is left out"
    shown = Table(title=name, title_justify='left')
    columns = [column for column in table if column not in ('part', 'leak') or table[column].nunique() > 1]
    for column in columns: shown.add_column(column.replace('_', ' '), overflow='fold')
    for row in table[columns].head(ROWS).itertuples(index=False): shown.add_row(*map(_written, row))
    return shown


def _written(value: Any) -> str:
    if isinstance(value, bool): return 'yes' if value else ''
    return f'{value:.4f}' if isinstance(value, float) else str(value)
