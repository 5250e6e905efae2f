"""The loops that the compiled kernels are measured against: LinUCB, one interaction at a time.

Both play the same actions as the kernels and are handed their environment and noise, which the kernels draw themselves.

Shapes: T rounds, A actions, d dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def recompute(
    action_set: Float64Array, means: Float64Array, noise: Float64Array, ridge: float, confidence: float
) -> list[int]:
    """The way of published code: statistics from the whole history each round, a Python loop over the actions.

    action_set float64[A, d], means float64[A], noise float64[T] -> the T actions.
    """
    T, d = len(noise), action_set.shape[1]
    actions: list[int] = []
    played, rewards = np.empty((T, d)), np.empty(T)
    for t in range(T):
        history = played[:t]
        gram = ridge * np.eye(d) + history.T @ history
        moment = history.T @ rewards[:t]
        inverse = np.linalg.inv(gram)
        w = inverse @ moment
        bounds = []
        for a in action_set:
            bounds.append(a @ w + confidence * np.sqrt(a @ inverse @ a))
        j = int(np.argmax(bounds))
        actions.append(j)
        played[t] = action_set[j]
        rewards[t] = means[j] + noise[t]
    return actions


def incremental(
    action_set: Float64Array, means: Float64Array, noise: Float64Array, ridge: float, confidence: float
) -> list[int]:
    """The sensible loop: running sums, one `numpy.linalg.solve` a round for all actions and the estimate together."""
    A, d = action_set.shape
    gram = ridge * np.eye(d)
    right = np.zeros((d, A + 1))  # the actions, then the moment
    right[:, :A] = action_set.T
    actions: list[int] = []
    for t in range(len(noise)):
        solution = np.linalg.solve(gram, right)
        width = np.sqrt(np.einsum("ad,da->a", action_set, solution[:, :A]))
        j = int(np.argmax(action_set @ solution[:, A] + confidence * width))
        a = action_set[j]
        gram += np.outer(a, a)
        right[:, A] += (means[j] + noise[t]) * a
        actions.append(j)
    return actions
