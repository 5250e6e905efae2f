"""Records the Q tables of rlberry-scool's UCB-VI on logs of random play: writes rlberry_ucbvi.npz beside itself.

rlberry-scool pins other packages than this project's, so it gets an environment of its own:

    python3.11 -m venv /tmp/rlberry && /tmp/rlberry/bin/pip install rlberry-scool==0.7.3
    /tmp/rlberry/bin/python tests/oracles/rlberry_ucbvi.py

It is told to use the paper's bonus and the paper's estimate 0 for pairs that it has not seen; counts, estimates and
backward induction are its own (`stage_dependent=True`). It bounds V by H but not Q: the comparison bounds Q.

Shapes: K episodes, S states, A actions, H steps.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import rlberry.spaces
from rlberry.envs import Model
from rlberry_scool.agents import UCBVIAgent

CASES = {"small_bonus": (5, 3, 6, 60, 0.02), "middle_bonus": (3, 2, 4, 40, 0.1), "paper_bonus": (2, 2, 2, 800, 1.0)}
"""S, A, H, K and the multiplier of the paper's bonus."""


class Replay(Model):
    """An environment that is asked for its spaces only: the log is fed to the agent step by step."""

    def __init__(self, n_states: int, n_actions: int) -> None:
        Model.__init__(self)
        self.observation_space = rlberry.spaces.Discrete(n_states)
        self.action_space = rlberry.spaces.Discrete(n_actions)
        self.reward_range = (0.0, 1.0)

    def reset(self, seed=None, options=None):
        return 0, {}

    def step(self, action):
        raise AssertionError("the log is replayed")


class PaperBonus(UCBVIAgent):
    """b = bonus 2 H sqrt(log(S A T / delta) / max(n, 1)), delta = 1 / T, T = K H."""

    scale = 0.0

    def _compute_bonus(self, n, hh):
        return self.scale / math.sqrt(max(n, 1))


def record(n_states, n_actions, length, episodes, bonus, rng):
    """A log of random play, and the Q tables after 0 .. K - 1 of its episodes."""
    law = rng.dirichlet(np.ones(n_states), (length, n_states, n_actions))
    mean = rng.uniform(size=(length, n_states, n_actions))
    T = episodes * length
    agent = PaperBonus((Replay, {"n_states": n_states, "n_actions": n_actions}), horizon=length, stage_dependent=True)
    agent.scale = bonus * 2 * length * math.sqrt(math.log(n_states * n_actions * T * T))
    agent.B_sa[:] = agent.scale
    agent.P_hat[:] = 0.0
    assert agent.v_max[0] == length
    state, action = np.empty((episodes, length), np.uint8), np.empty((episodes, length), np.uint8)
    reward, tables = np.empty((episodes, length)), np.empty((episodes, length, n_states, n_actions))
    for k in range(episodes):
        # the agent's own backward induction, as at the end of its `_run_episode`
        backward_induction(agent)
        tables[k] = agent.Q
        s = int(rng.integers(n_states))
        for h in range(length):
            a = int(rng.integers(n_actions))
            r = float(rng.uniform() < mean[h, s, a])
            following = int(rng.choice(n_states, p=law[h, s, a]))
            agent._update(s, a, following, r, h)
            state[k, h], action[k, h], reward[k, h] = s, a, r
            s = following
    return {"state": state, "action": action, "reward": reward.astype(np.uint8), "q": tables}


def backward_induction(agent):
    from rlberry_scool.agents.dynprog.utils import backward_induction_sd

    backward_induction_sd(agent.Q, agent.V, agent.R_hat + agent.B_sa, agent.P_hat, agent.gamma, agent.v_max[0])


def main() -> None:
    rng = np.random.default_rng(20231012)
    arrays = {}
    for name, sizes in CASES.items():
        recorded = record(*sizes, rng)
        arrays[f"{name}/sizes"] = np.array(sizes)
        # every table of the beginning, then every tenth: the file stays small
        kept = np.unique(np.r_[:10, 10 : sizes[3] : 10, sizes[3] - 1])
        recorded["q"] = recorded["q"][kept]
        arrays |= {f"{name}/{key}": value for key, value in recorded.items()} | {f"{name}/episode": kept}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
