"""`fastcontrast sweep`: an ablation, from a section of settings.ini to its runs."""
from typing import Annotated

from typer import Argument, Option

from ..files import user_path
from .expand import read_seeds, read_sweep
from .output import this_command
from .settings import SETTINGS_FILE, folder_of
from .sweeping import carry_out, conclude, show_plan
from .verbs import verb


@verb(15, "fastcontrast sweep speedups --seeds 0 1 2 --dry-run")
def sweep(
    name: Annotated[str, Argument(help="The section \\[sweep: NAME] of settings.ini", show_default=False)],
    seeds: Annotated[str | None, Option(
        help="Train every setting with each of these seeds, like [bold]--seeds 0 1 2[/]",
        show_default="the section's, or its base's")] = None,
    jobs: Annotated[int, Option(
        help="Runs that are made at a time; they share the cores, and divide the GPUs")] = 1,
    dry_run: Annotated[bool, Option('--dry-run', help="Show the runs and how they stand, and make none")] = False,
    out: Annotated[str | None, Option(
        '--out', '-o', metavar='FOLDER', help="Where the runs' folders are", show_default="runs/NAME")] = None,
    config: Annotated[str, Option(metavar='FILE', help="The file that has the section")] = SETTINGS_FILE,
):
    """Make the runs of an ablation: every setting that a section of settings.ini stands for, with every seed.

    \b
    [bold]\\[sweep: speedups][/]
    [bold]base = digits[/]      a named run; without it, the defaults
    [bold]seed = 0 1 2[/]
    [bold]with =[/]             an axis: an option of pretrain, one value a line
    [bold]    none[/]           its default, as an empty line is
    [bold]    comb_patches[/]
    [bold]    intermediate, partial[/]

    [bold]mode = grid[/] (if not given) makes every combination of the axes; [bold]one_at_a_time[/] the base, and the
    base with one value changed; [bold]leave_one_out[/] the base with all the speedups, and without each line of them;
    [bold]search[/] (by the extra search) as many settings as [bold]trials = 20[/] says, each chosen by the kNN accuracy
    of those before it, from lines or from a range like [bold]lr = 1e-3 .. 1 log[/].

    Each run is one of pretrain's, in a folder that is named by what differs. The same command goes on: with runs that
    are finished it has nothing to do, others are taken up where they ended, and what can't be combined is noted in
    sweep.json, with the reason."""
    made = read_sweep(name, config, None if seeds is None else read_seeds(seeds))
    folder = folder_of(name) if out is None else user_path(out, '--out')
    if dry_run: return show_plan(made, folder)
    conclude(carry_out(made, folder, jobs), this_command())
