"""STG on arrays of one's own: groups of tasks, a network for each group, and what that was worth.

python examples/stg_on_arrays.py
"""

from __future__ import annotations

import argparse

from sklearn.datasets import make_multilabel_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from pymtg import STGTrainer, TaskLayout
from pymtg.nets import mlp

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--groups", default="auto", help="how many groups, or 'auto'")
options = parser.parse_args()

# In place of these: inputs [M, features] and targets [M, T], -100 (or NaN) where a label is missing.
inputs, targets = make_multilabel_classification(2000, 20, n_classes=12, n_labels=3, random_state=0)
x_train, x_test, y_train, y_test = train_test_split(inputs, targets, test_size=0.25, random_state=0)
scaler = StandardScaler().fit(x_train)
x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)

layout = TaskLayout.binary([f"tag {t}" for t in range(targets.shape[1])])
trainer = STGTrainer(
    mlp(x_train.shape[1], (128, 128)),
    layout,
    num_groups=options.groups if options.groups == "auto" else int(options.groups),
    epochs=options.epochs,
    init="joint",  # specialised networks go on from the joint one
    seed=0,
    num_threads=1,
)
trainer.fit((x_train, y_train))

print(trainer.groups_)
for method, scores in trainer.evaluate((x_test, y_test)).items():
    print(f"{method:9} balanced accuracy {scores.mean['balanced_accuracy']:.3f}  ROC AUC {scores.mean['roc_auc']:.3f}")
print("probabilities of new rows:", tuple(trainer.predict_proba(x_test[:5]).shape))
