"A service that runs are told to."
from fastcontrast.logs import RunLog


class Told(RunLog):
    "Keeps what it is told, by the id of the run"
    kept: dict[str, list] = {}

    def open(self):
        self.id = self.id or f'run {len(self.kept)}'
        self.mine = self.kept.setdefault(self.id, [])

    def tell(self, values, step): self.mine.append((step, values))
    def tell_settings(self, settings): self.mine.append(settings)
    def tell_views(self, drawn): self.mine.append(drawn)
    def close(self, failed): self.mine.append(failed)


def epochs_told(told: list) -> dict[int, dict[str, float]]:
    "The rows of the epoch table, by step"
    return {step: values for step, values in (each for each in told if isinstance(each, tuple)) if 'epoch' in values}
