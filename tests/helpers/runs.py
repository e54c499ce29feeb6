"Folders of runs as training leaves them, without training"
import json
from pathlib import Path

SETTINGS = dict(data='digits', method='simclr', loss=None, speedups=None, arch='resnet10t', epochs=3, batch_size=64,
                lr=None, labels=None, valid=.2, precision='auto', seed=0, workers=None, processes=1, cache=False)
VERSIONS = dict(fastcontrast='0.1.0', torch='2.11.0', torchvision='0.26.0')
CONTROLS = {'raw pixels': dict(knn=.9, few_labels=.7, few_labels_std=.01, per_class=10),
            'untrained encoder': dict(knn=.8, few_labels=.6, few_labels_std=.01, per_class=10)}


def said_of(judged, results):
    "The closing table of a run"
    if results is False: return {}
    return CONTROLS | ({'trained encoder': judged} if results and judged else {})


def run_folder(
    folder: Path,           # to be made
    knn=(.5, .7, .8),       # of each epoch; None: not judged
    seconds=10.,            # of an epoch
    tflop=2.,
    few=.6,                 # accuracy with few labels
    settings=None,          # that differ from the usual ones
    speedups=None,          # as the learner has written them; None: as the settings have them
    state='finished',
    results=True,           # None: not judged at the end; False: nor before
    **record,               # that differs from the usual one
) -> Path:
    "The folder of a run of pretrain"
    folder.mkdir(parents=True)
    chosen = SETTINGS | (settings or {})
    judged = dict(knn=knn[-1], few_labels=few, few_labels_std=.01, per_class=10) if len(knn) else {}
    cost = dict(steps=66, images=3000, seconds=seconds * len(knn), tflop=tflop * len(knn), images_s=1000 / seconds,
                memory_mb=500. + seconds)
    said = dict(chosen, size=8, lr=chosen['lr'] or .06, precision='fp32', loss=chosen['loss'] or 'NTXent(temp=0.2)',
                setting='digits', small_input=False, target=None, memory=None, multi_crop=None,
                speedups=[*filter(None, [chosen['speedups']])] if speedups is None else [*speedups],
                recipe=dict(lr=.06, temp=.2), n_train=1438, n_labeled=0, n_valid=359, classes=[*'0123456789'],
                judged_within='', channels=3, value_range=None, versions=VERSIONS, python='3.11.2',
                device='cpu, 2 cores, x86_64', commit=None, command=['fastcontrast', 'pretrain'], verb='pretrain',
                settings=chosen, state=state, seconds=1.5 * seconds * len(knn), notes=[], epochs_done=len(knn),
                cost=cost, results=said_of(judged, results))
    (folder/'config.json').write_text(json.dumps(said | record, default=str))
    rows = [f"{e},{5 - e / 10},{'' if value is None else value},{.05 + .001 * e},{seconds * (e + 1)},{tflop * (e + 1)},"
            f"{1000 / seconds},{500 + seconds},00:0{e}" for e, value in enumerate(knn)]
    head = 'epoch,train_loss,knn,spread,seconds,tflop,images_s,memory_mb,time'
    (folder/'history.csv').write_text('\n'.join([head, *rows, '']))
    return folder
