"How coco.json was made: `pip install pycocotools`, then `PYTHONPATH=tests python tests/detection/coco.py`"
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from test_scores import scenes


def boxes(target):
    "COCO's form: left, top, width, height"
    x = target['boxes'].numpy()
    return np.hstack([x[:, :2], x[:, 2:] - x[:, :2]]).tolist()


def figures(found, objects):
    truth, number = COCO(), 0
    annotations = []
    for k, target in enumerate(objects):
        for box, label in zip(boxes(target), target['labels'].tolist()):
            number += 1
            annotations.append(dict(id=number, image_id=k, category_id=label, bbox=box, area=box[2] * box[3],
                                    iscrowd=0))
    truth.dataset = dict(info={}, images=[dict(id=k) for k in range(len(objects))], annotations=annotations,
                         categories=[dict(id=1), dict(id=2)])
    truth.createIndex()
    rows = [dict(image_id=k, category_id=label, bbox=box, score=score) for k, detections in enumerate(found)
            for box, label, score in zip(boxes(detections), detections['labels'].tolist(),
                                         detections['scores'].tolist())]
    evaluation = COCOeval(truth, truth.loadRes(rows), 'bbox')
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, -1]  # thresholds, recalls, classes
    return dict(AP=precision.mean(), AP50=precision[0].mean(), AP75=precision[5].mean())


if __name__ == '__main__':
    made = [dict(seed=seed, jitter=jitter, **figures(*scenes(seed, jitter)))
            for seed in range(5) for jitter in (0.5, 2.)]
    about = f"pycocotools {version('pycocotools')}, by tests/detection/coco.py"
    (Path(__file__).parent/'coco.json').write_text(json.dumps(dict(made=about, figures=made), indent=1) + '\n')
