"""`fastcontrast views`: draw what training would see."""
from typing import Annotated, Any

from typer import Argument, Option

from ..core import InputError, clipped
from .inputs import Column, range_option, read_pictures, tell_notes, tell_undecodable
from .output import DRAWINGS, console, out_file
from .settings import Run, parse_method, read_range
from .verbs import verb


@verb(50, "fastcontrast views pictures --method byol -o views.png")
def views(
    data: Annotated[str, Argument(help="A folder of pictures, a .csv file of their paths, or 'digits'")] = 'digits',
    out: Annotated[str, Option('--out', '-o', help="The .png, .svg or .pdf file for the drawing")] = 'views.png',
    method: Annotated[str, Option(
        help="Draw this recipe's pair of views, small crops included: {methods}")] = Run.method,
    arch: Annotated[str, Option(
        help="Encoder that they are made for: some recipes have other crops for transformers")] = Run.arch,
    kind: Annotated[str | None, Option(
        help="Two views of a kind, in place of a recipe's: {view_kinds}; those with _cifar leave out blur",
        show_default="the recipe's")] = None,
    size: Annotated[int | None, Option(help="Side of the views in pixels", show_default="as in pretrain")] = None,
    store_size: Annotated[int | None, Option(
        help="Short side in pixels at which pictures are kept, of which crops are cut",
        show_default="as in pretrain")] = None,
    unlabelled: Annotated[bool, Option(
        '--unlabelled', help="Take a folder as it is: loose pictures and nested ones")] = False,
    column: Column = None,
    channels: Annotated[int | None, Option(help="Channels of the pictures", show_default="as in pretrain")] = None,
    value_range: Annotated[str | None, range_option(show_default="as in pretrain")] = None,
    bands: Annotated[str | None, Option(
        help="The channels that are drawn as red, green and blue, counted from 0, like 3,2,1; or one, like 7, as grey",
        show_default="of more than three the first, the middle and the last")] = None,
    n: Annotated[int, Option('--n', '-n', min=1, help="Pictures to draw")] = 6,
    seed: Annotated[int, Option(help="Another seed draws other pictures and other views")] = 0,
):
    "Draw pictures beside the views that training would make of them."
    import torch
    from ..views import draw_views
    recipe, chosen = parse_method(method), _bands(bands)
    file = out_file(out, *DRAWINGS)
    # no memory: only the pictures that are drawn are then decoded
    dls = read_pictures(data, 2, size=size, store_size=store_size, valid=0, seed=seed, memory=0, workers=0,
                        unlabelled=unlabelled, column=column, channels=channels, value_range=read_range(value_range))
    few = dls.train.ordered(n)
    few.bs = n
    torch.manual_seed(seed % 2**63)
    views, name = _maker(recipe, kind, arch, dls)
    x, *aspects, _ = few.one_batch()
    draw_views(x, views(x, None, *aspects), file, n, *aspects, bands=chosen)
    tell_notes(dls)
    pictures = f"{len(x)} pictures and their" if len(x) > 1 else "1 picture and its"
    console.print(f"{pictures} views ({name}, {dls.size} px) are in {file}")
    tell_undecodable(dls)


def _bands(text: str | None) -> tuple[int, ...] | None:
    "The channels that are drawn"
    if text is None: return None
    try: return tuple(int(band) for band in text.split(','))
    except ValueError:
        raise InputError(f"--bands='{clipped(text)}' is no list of channels: give three like 3,2,1, or one, counted "
                         "from 0.") from None


def _maker(recipe: Any, kind: str | None, arch: str, dls):
    "What makes the views of a recipe, or two of a kind, and its name"
    from ..models import make_encoder
    from ..recipes import encoder_kind, make_part, pick_setting
    from ..views import RoleViews, as_views
    setting = pick_setting(dls.source, dls.size, len(dls.train.dataset))
    recipe = recipe.resolve(setting, dls.size, encoder_kind(make_encoder(arch, size=dls.size)))
    recipe.check()
    views, crops = as_views(kind or recipe.views, dls.size, dls.channels), make_part(recipe.multi_crop)
    name = views.main.kind
    if kind or not crops: return views, name
    return RoleViews(*crops.makers(views.main)), f"{name}, {crops}"
