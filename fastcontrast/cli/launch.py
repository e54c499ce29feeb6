"""A command in several processes. `--processes 4` has accelerate start the command itself four times, watches them, and
ends when they do: process 0 does what one process would do, and the others train along."""
import logging
import math
import os
import signal
import sys

from ..core import InputError
from .output import fail


def rank() -> int | None:
    "Which of several processes this is; None for a program that was not launched as one of them"
    return int(os.environ['RANK']) if 'RANK' in os.environ else None


def launch(
    processes: int, # how many
) -> None:
    "This command in processes that train together. Ends the program with the one sentence that says why, if they fail"
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    gpus, cores = torch.cuda.device_count(), os.cpu_count()
    if processes > (gpus or cores):
        places = f'{gpus} GPUs' if gpus else f'{cores} cores'
        raise InputError(f"--processes {processes} is more than the {places} of this machine: "
                         f"give {gpus or cores} or fewer.")
    # everything is said, so that nothing comes from accelerate's own settings
    options = dict(num_processes=processes, num_machines=1, gpu_ids='all', main_process_port=0, mixed_precision='no',
                   dynamo_backend='no')
    if 'OMP_NUM_THREADS' not in os.environ: options['num_cpu_threads_per_process'] = max(1, cores // processes)
    switches = [f'--{name}={value}' for name, value in options.items()]
    args = launch_command_parser().parse_args(['--multi_gpu', *switches, '--module', 'fastcontrast', *sys.argv[1:]])
    logging.disable()  # the launcher's own reports
    try: launch_command(args)
    except SignalException as e: sys.exit(128 + e.sigval)  # process 0 has said what it saved
    except ChildFailedError as e:
        process, failure = min(e.failures.items(), key=lambda item: _precedence(item[1]))
        if failure.exitcode < 0:
            fail(f"error: process {process} of {processes} was ended by {failure.signal_name()}, "
                 "and the others with it.", 1)
        fail(failure.message.rstrip(), failure.exitcode)


def _precedence(failure) -> tuple:
    "What a process has to say goes before one that died, and both before those that ended because of it"
    code = failure.exitcode
    return code != 2, code in (1, -signal.SIGTERM), failure.error_file_data.get('timestamp', math.inf)
