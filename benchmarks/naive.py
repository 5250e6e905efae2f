"""The loops that the compiled kernels are measured against, one interaction at a time.

They are handed their environment and noise, which the kernels draw themselves, and but for Thompson sampling, whose
draws are its own, they play the same actions as the kernels.

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


def uniform(means: Float64Array, noise: Float64Array, u: Float64Array) -> list[int]:
    """Uniform play of a Bernoulli bandit: action floor(u A), a reward where the noise is below the action's mean.

    means float64[A], noise and u float64[T] on [0, 1) -> the T actions.
    """
    actions: list[int] = []
    rewards = np.empty(len(noise))
    for t in range(len(noise)):
        j = int(u[t] * len(means))
        actions.append(j)
        rewards[t] = noise[t] < means[j]
    return actions


def ucb(means: Float64Array, noise: Float64Array, bonus: float) -> list[int]:
    """The shrunk index from running sums, for all actions of a Bernoulli bandit at once."""
    total, count = np.zeros(len(means)), np.ones(len(means))  # 1 + N_a
    actions: list[int] = []
    for t in range(len(noise)):
        j = int(np.argmax(total / count + bonus / np.sqrt(count)))
        actions.append(j)
        total[j] += noise[t] < means[j]
        count[j] += 1
    return actions


def beta_thompson(means: Float64Array, noise: Float64Array, rng: np.random.Generator) -> list[int]:
    """Thompson sampling of a Bernoulli bandit, one `Generator.beta` a round for all actions."""
    a, b = np.ones(len(means)), np.ones(len(means))
    actions: list[int] = []
    for t in range(len(noise)):
        j = int(np.argmax(rng.beta(a, b)))
        actions.append(j)
        if noise[t] < means[j]:
            a[j] += 1
        else:
            b[j] += 1
    return actions
