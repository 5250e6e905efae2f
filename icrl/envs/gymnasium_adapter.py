"""One environment at a time as a `gymnasium.Env`: the same rewards and states as the batched play of the same index.

Importing this module registers `icrl/Interaction-v0`; `icrl.envs` does not import it, so that only those who want
Gymnasium load it:

    import gymnasium
    import icrl.envs.gymnasium_adapter
    env = gymnasium.make("icrl/Interaction-v0", environment={"kind": "bernoulli_bandit", "n_actions": 3})

An episode in Gymnasium's sense is a whole interaction of T rounds, in an MDP all K episodes of H steps: what is learnt
in the first helps in the last, as for `icrl.algorithms`. `info["step"]` says where in its MDP episode a round is; with
step 0 the observation is a new start state. After round T the interaction is *terminated*: the horizon is part of the
problem and there is no value beyond it; nothing is ever *truncated*. The observation returned with it repeats the last.

Shapes: A actions, d dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from icrl.config import EnvironmentConfig, GridWorldConfig, LinearBanditConfig, TabularMDPConfig, build_one_of
from icrl.envs import BanditBatch, Interaction, interact, sample
from icrl.streams import Split

ID = "icrl/Interaction-v0"

Seen = npt.NDArray[np.float32] | np.int64
"""Linear bandits: float32[A, d], the action set; MDPs: the state; multi-armed bandits: always 0."""


class InteractionEnv(gymnasium.Env[Seen, np.int64]):
    """The environment of one trajectory index; actions are numbers 0 .. A - 1.

    `environment` is a section of a config or the same as a mapping, `seed` and `split` the key of the data: index i is
    the i-th trajectory of that split. `reset(seed=i)` and `reset(options={"index": i})` go to index i, `reset()` to the
    index after the last one, at first to `index`. An index is the same environment with the same noise again.

    Raises:
        ConfigError: with every problem of `environment`.
        ValueError: for a negative index, an action that is none, a step after the end or before the first reset.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        environment: EnvironmentConfig | Mapping[str, Any],
        seed: int = 0,
        split: str = "eval",
        index: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode = {render_mode!r}: expected None, there is nothing to draw")
        if isinstance(environment, Mapping):
            environment = cast(EnvironmentConfig, build_one_of(EnvironmentConfig, environment, "environment"))
        if split.upper() not in Split.__members__:
            names = ", ".join(member.name.lower() for member in Split)
            raise ValueError(f"split = {split!r}: expected one of {names}")
        self.environment: EnvironmentConfig = environment
        self.render_mode = None
        self._key = (seed, Split[split.upper()])
        self._next = _checked_index("index", index)
        self._play: Interaction | None = None
        self._round = 0
        self.action_space = spaces.Discrete(environment.n_actions)
        space: spaces.Space[Any]
        if isinstance(environment, LinearBanditConfig):
            space = spaces.Box(-1.0, 1.0, (environment.n_actions, environment.dim), np.float32)
        elif isinstance(environment, TabularMDPConfig | GridWorldConfig):
            space = spaces.Discrete(environment.n_states)
        else:
            space = spaces.Discrete(1)
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """The first observation of an index, and `info` with `index`, `round` and, for MDPs, `episode` and `step`."""
        super().reset(seed=seed)
        index = self._next if seed is None else _checked_index("seed", seed)
        if options and "index" in options:
            index = _checked_index('options["index"]', options["index"])
        self._index, self._next = index, index + 1
        batch = sample(self.environment, *self._key, np.array([index]))
        self._action_set = batch.action_set[0] if isinstance(batch, BanditBatch) else None
        self._play = interact(self.environment, batch, *self._key)
        self._round = 0
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, False and `info`.

        Beside the keys of `reset`, which describe the coming round, `info` tells of the round just played its
        `optimal_action` and the action's `suboptimality` (`icrl.envs.Interaction`): their sum is the regret.
        """
        if self._play is None or self._round == self.environment.horizon:
            raise ValueError("step: expected a reset() first, no interaction is under way")
        if not self.action_space.contains(action):
            raise ValueError(f"action = {action!r}: expected an integer from 0 to {self.environment.n_actions - 1}")
        chosen = np.array([action], np.int64)
        told = {
            "optimal_action": int(self._play.optimal_action()[0]),
            "suboptimality": float(self._play.suboptimality(chosen)[0]),
        }
        reward = float(self._play.step(chosen)[0])
        self._round += 1
        return self._observation(), reward, self._round == self.environment.horizon, False, self._info() | told

    def _observation(self) -> Seen:
        """What the coming round shows; arrays are the caller's own."""
        assert self._play is not None
        if isinstance(self.environment, LinearBanditConfig):
            seen = self._play.observe()
            shown = self._action_set if seen is None else seen[0]
            return np.array(shown, np.float32)
        if isinstance(self.environment, TabularMDPConfig | GridWorldConfig):
            state = self._play.observe()
            assert state is not None
            return np.int64(state[0])
        return np.int64(0)

    def _info(self) -> dict[str, Any]:
        info = {"index": self._index, "round": self._round}
        if isinstance(self.environment, TabularMDPConfig | GridWorldConfig):
            episode, step = divmod(self._round, self.environment.episode_length)
            info |= {"episode": episode, "step": step}
        return info


def _checked_index(name: str, index: Any) -> int:
    if not isinstance(index, int | np.integer) or not 0 <= index < 2**63:
        raise ValueError(f"{name} = {index!r}: expected a trajectory index, an integer from 0 to 2**63 - 1")
    return int(index)


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=f"{__name__}:InteractionEnv", disable_env_checker=True)
