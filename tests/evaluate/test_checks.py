"Features and labels that no measure can use"
import math

import pytest
import torch
from helpers.features import clusters

from fastcontrast.core import InputError
from fastcontrast.evaluate.knn import knn_accuracy
from fastcontrast.evaluate.linear import few_label_accuracy, linear_probe

MEASURES = [knn_accuracy, linear_probe, few_label_accuracy]


@pytest.mark.parametrize('measure', MEASURES)
def test_input_that_no_measure_can_use(measure):
    (h, y), (test_h, test_y) = clusters(90), clusters(30, seed=1)
    def refused(match, h=h, y=y, test_h=test_h, test_y=test_y):
        with pytest.raises(InputError, match=match) as e:
            measure(h, y, test_h, test_y)
        assert '\n' not in str(e.value)
    nan = h.clone()
    nan[3, 2] = math.nan
    refused('training pictures with labels', y=torch.full_like(y, -1))
    refused('training pictures with labels', h=h[:0], y=y[:0])
    refused('test pictures with labels', test_h=test_h[:0], test_y=test_y[:0])
    refused('test pictures with labels', test_y=torch.full_like(test_y, -1))
    refused('at least two classes; the training labels have only class 4', y=torch.full_like(y, 4))
    refused('not 12 and 5 of them', test_h=test_h[:, :5])
    refused('training features: they hold NaN', h=nan)
    refused('test features: they hold NaN', test_h=test_h / 0)
    refused(r'shape \[90, 12\] with labels of shape \[89\]', y=y[1:])
    refused(r'shape \[90\]', h=h[:, 0])
    refused('whole numbers', y=y.double())
