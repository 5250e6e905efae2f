"""The stages on multi-armed bandits: a dataset, its batches, the evaluation of an untrained model."""

import numpy as np
import pytest

import icrl.checkpoint
import icrl.envs
from data_gen.generate import generate
from eval import imitation
from eval.run import evaluate_run
from icrl.config import load
from icrl.model import Transformer
from icrl.run_dir import RunDirectory
from icrl.store import SplitReader, dataset_path
from icrl.streams import Split
from train.dataset import TrajectoryStream

MIXED = "{algorithm: mixture, components: [{algorithm: thompson}, {algorithm: epsilon_greedy, weight: 0.5}]}"
CASES = {
    "bernoulli": ("kind: bernoulli_bandit", "{algorithm: ucb}"),
    "gaussian": ("kind: gaussian_bandit", "{algorithm: ucb, index: ucb1}"),
    "mixture": ("kind: gaussian_bandit", MIXED),
}


@pytest.fixture(params=CASES)
def loaded(request, tmp_path):
    environment, teacher = CASES[request.param]
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""
        name: small
        storage: {{root: {tmp_path}}}
        environment: {{{environment}, n_actions: 3, horizon: 12}}
        context: [{teacher}]
        dataset: {{train: 128, validation: 8, test: 50, actors: 0}}
        model: {{layers: 1, heads: 2, embed_dim: 8, mlp_dim: 8, tokens: merged}}
        eval: {{environments: 300}}
        """
    )
    return load(file)


def test_generate_train_and_evaluate(loaded):
    config = loaded.config
    generate(config)
    reader = SplitReader(dataset_path(config), "train")
    batch = TrajectoryStream(reader, config.environment, global_batch=32, seed=0).batch(0)
    np.testing.assert_array_equal(batch["action_set"], np.tile(np.eye(3, dtype=np.float32), (32, 1, 1)))
    environments = icrl.envs.sample(config.environment, config.dataset.seed, Split.TRAIN, batch["index"])
    np.testing.assert_array_equal(batch["optimal_action"], environments.optimal_action)
    interaction = icrl.envs.interact(config.environment, environments, config.dataset.seed, Split.TRAIN)
    for t in range(12):
        np.testing.assert_array_equal(batch["reward"][:, t], interaction.step(batch["action"][:, t].astype(np.int64)))

    run = RunDirectory.open(loaded)
    icrl.checkpoint.save(Transformer(config.model, config.environment, seed=3), run.path)
    run.set_status("trained", step=1)
    results = evaluate_run(run, config)
    ends = {name: result.final_regret for name, result in results.algorithms.items()}
    assert {"transformer", "thompson", "empirical_mean", "uniform", "optimal"} <= set(ends)
    assert ends["optimal"] == 0
    assert max(ends["thompson"], ends[results.teacher]) < 0.8 * ends["uniform"]
    assert results.imitation is not None
    assert imitation.open_test_split(config).n == 50
    assert (run.figures / "regret.png").is_file()
