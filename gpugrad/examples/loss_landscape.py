"""The loss around a trained network, in filter-normalised directions.

A network learns two interleaved spirals. Then its weights are moved along one random direction, and
along two, each row of a matrix by its own length (Li et al. 2018): the minimum lies in a bowl. The
way of the training is drawn in the plane of its two largest movements.

    python -m gpugrad.examples.loss_landscape [--picture FILE.svg]

>>> main([])
loss 0.69... at the start, 0.0... trained
along a random direction: ...
lowest of 15 x 15 points of a plane: 0.0..., where the trained network is: True
the way: its two largest directions hold 9... % of its movement
the parameters are what they were: True
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpugrad as gg
from gpugrad import landscape, nn, optim
from gpugrad.examples._command import new_figure, parse_picture, save

COUNT = 100


def spirals() -> tuple[gg.Tensor, gg.Tensor]:
    """Return points (2 COUNT, 2) of two spirals, and which they belong to."""
    turn = np.linspace(0.3, 2.2, COUNT) * np.pi
    arm = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=1) / 6
    noise = np.random.default_rng(0).normal(scale=0.03, size=(2 * COUNT, 2))
    points = np.concatenate([arm, -arm]) + noise
    return gg.tensor(points.astype("float32")), gg.tensor(np.repeat([0, 1], COUNT))


def flat(model: nn.Module) -> np.ndarray:
    """Return all parameters in one vector, float64."""
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]).astype(float)


def unflat(model: nn.Module, vector: np.ndarray) -> list[np.ndarray]:
    """Return a vector cut into the shapes of the parameters."""
    shapes = [p.shape for p in model.parameters()]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(vector, cuts), shapes, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, look around, and draw the plane of the training's way."""
    picture = parse_picture(__doc__, arguments)
    gg.manual_seed(2)
    points, labels = spirals()
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model.append(nn.Linear(32, 2))
    optimizer = optim.Adam(model.parameters(), lr=1e-2)

    def loss() -> gg.Tensor:
        return nn.functional.cross_entropy(model(points), labels)

    first, way = float(loss()), [flat(model)]
    for step in range(400):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % 10 == 9:
            way.append(flat(model))
    end, trained = way[-1], float(loss())
    print(f"loss {first:.3f} at the start, {trained:.3f} trained")

    one, two = landscape.random_direction(model), landscape.random_direction(model)
    steps = np.linspace(-1, 1, 15)
    heights = landscape.line(loss, model, one, steps)
    print("along a random direction:", " ".join(f"{h:.2f}" for h in heights[::2]))
    plane = landscape.plane(loss, model, (one, two), steps, steps)
    middle = bool(plane.argmin() == plane.size // 2)
    print(f"lowest of 15 x 15 points of a plane: {plane.min():.3f}, ", end="")
    print(f"where the trained network is: {middle}")

    moves = np.array(way) - end
    _, sizes, axes_of_way = np.linalg.svd(moves, full_matrices=False)
    share = (sizes[:2] ** 2).sum() / (sizes**2).sum()
    print(f"the way: its two largest directions hold {100 * share:.0f} % of its movement")
    print(f"the parameters are what they were: {bool((flat(model) == end).all())}")

    if picture is not None:
        x, y = moves @ axes_of_way[0], moves @ axes_of_way[1]
        margin = 0.25 * max(np.ptp(x), np.ptp(y))
        xs = np.linspace(x.min() - margin, x.max() + margin, 31)
        ys = np.linspace(y.min() - margin, y.max() + margin, 31)
        directions = [unflat(model, axis) for axis in axes_of_way[:2]]
        heights = landscape.plane(loss, model, directions, xs, ys)
        figure = new_figure(11, 4.5)
        left, right = figure.subplots(1, 2)
        left.contourf(steps, steps, plane, levels=20)
        left.set_title("loss in two random directions, filter-normalised")
        right.contourf(xs, ys, np.log10(heights), levels=20)
        right.plot(x, y, "w.-", linewidth=1)
        right.set_title("log10 of the loss, and the way of the training")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
