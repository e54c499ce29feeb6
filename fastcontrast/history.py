"""The epoch table as a file that is whole at any time, and goes on where a run is taken up."""
import csv
import io
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback

from .files import write_whole
from .step import Phase


class History(Callback):
    "Writes the epoch table to a CSV file after every epoch, as one; a checkpoint holds its rows"
    order = Phase.LAST + 1  # the recorder has its row

    def __init__(self,
        path: str | Path, # of the file
    ): self.path_of_file, self.rows, self.problem = Path(path), [], ''

    def before_fit(self): self.rows = []

    def after_epoch(self):
        row = zip(self.recorder.metric_names, self.recorder.log, strict=True)
        self.rows.append({name: value if isinstance(value, int | float) else str(value) for name, value in row
                          if value is not None})
        self.write()

    def write(self):
        "Write the file; a full disk costs the file, which the next epoch writes anew, and not the run"
        text = io.StringIO()
        writer = csv.DictWriter(text, self.recorder.metric_names, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(self.rows)
        try: write_whole(self.path_of_file, text.getvalue())
        except OSError as e: self.problem = f"{self.path_of_file} could not be written ({e.strerror or e})"
        else: self.problem = ''

    def state_dict(self) -> dict[str, Any]: return dict(rows=self.rows)
    def load_state_dict(self, state: dict[str, Any]): self.rows = [dict(row) for row in state['rows']]
