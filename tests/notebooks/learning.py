# Machine learning: dask-ml, XGBoost's own interface for Dask, and scikit-learn through joblib.
# A cell begins at each `# %%`, and `# %name` is a magic; ../test_notebooks.py runs the cells and checks their numbers.

# %% Load
# %load_ext cml_dask_magics

# %% Up
# %dask_up 2 --memory 3

# %% Points in two dimensions, around three centres
import dask.array as da
import numpy as np

centres = np.array([[0.0, 0.0], [6.0, 1.0], [2.0, 7.0]])
label = da.random.default_rng(3).integers(0, 3, size=3_000, chunks=750)
spread = da.random.default_rng(4).normal(size=(3_000, 2), chunks=(750, 2))
points = (da.take(da.from_array(centres, chunks=-1), label, axis=0) + spread).persist()
far = (label > 0).astype(int).persist()

# %% Scaled
from dask_ml.preprocessing import StandardScaler

scaler = StandardScaler().fit(points)
scaled = scaler.transform(points)
scaled_moments = [scaled.mean(axis=0).compute(), scaled.std(axis=0).compute()]

# %% Split
from dask_ml.model_selection import train_test_split

train, test, train_far, test_far = train_test_split(points, far, test_size=0.2, random_state=0)
sizes = [len(part) for part in (train, test, train_far, test_far)]
assert sizes == [2_400, 600, 2_400, 600]

# %% Along which lines they lie
from dask_ml.decomposition import PCA

lines = PCA(n_components=2, random_state=0).fit(points)
directions, shares = lines.components_, lines.explained_variance_ratio_

# %% A model that learns block by block
from dask_ml.wrappers import Incremental
from sklearn.linear_model import SGDClassifier

incremental = Incremental(SGDClassifier(random_state=0)).fit(train, train_far, classes=[0, 1])
incremental_right = (incremental.predict(test) == test_far).mean().compute()
assert incremental_right > 0.95

# %% Which settings are best
from dask_ml.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

grid = {"max_depth": [1, 2, 4], "min_samples_leaf": [1, 20]}
local_points, local_far = points.compute(), far.compute()
search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=3).fit(local_points, local_far)
best, best_score = search.best_params_, float(search.best_score_)

# %% XGBoost over all workers
import xgboost.dask

matrix = xgboost.dask.DaskDMatrix(client, train, train_far)
trained = xgboost.dask.train(
    client,
    {"objective": "binary:logistic", "max_depth": 3, "eta": 0.5},
    matrix,
    num_boost_round=10,
    evals=[(matrix, "train")],
    verbose_eval=False,
)
booster, losses = trained["booster"], trained["history"]["train"]["logloss"]
assert losses[-1] < losses[0] / 5

# %% What it predicts
predicted = xgboost.dask.predict(client, trained, test).compute()
local_test, local_test_far = test.compute(), test_far.compute()
assert ((predicted > 0.5) == local_test_far).mean() > 0.95

# %% scikit-learn, with Dask's workers under joblib
import os

import joblib
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

forest = RandomForestClassifier(10, max_depth=4, random_state=0)
with joblib.parallel_backend("dask"):
    forest_scores = cross_val_score(forest, local_points, local_far, cv=4)
    processes = set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(8)))
assert processes <= set(client.run(os.getpid).values())

# %% Down
# %dask_down
