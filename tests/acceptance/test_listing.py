"""The classic PyTorch listing: what stands between the two lines is PyTorch but for the imports."""

from __future__ import annotations

# ----------------------------------------------------------------------------------------------
import gpugrad as torch
from gpugrad import nn


class NeuralNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_sigmoid_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.Sigmoid(),
            nn.Linear(512, 512),
        )

    def forward(self, x):
        x = self.flatten(x)
        return self.linear_sigmoid_stack(x)


def train_loop(dataloader, model, loss_fn, optimizer):
    model.train()
    losses = []
    for X, y in dataloader:
        pred = model(X)
        loss = loss_fn(pred, y)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def evaluation_loop(dataloader, model, loss_fn):
    model.eval()
    test_loss, correct, size = 0, 0, 0
    with torch.no_grad():
        for X, y in dataloader:
            pred = model(X)
            test_loss += loss_fn(pred, y).item()
            correct += (pred.argmax(1) == y).sum().item()
            size += len(X)
    return test_loss / len(dataloader), correct / size


# ----------------------------------------------------------------------------------------------


def batches(count: int) -> list:
    """Random pictures of ten random patterns, with labels."""
    patterns = torch.random.normal(size=(10, 1, 28, 28))
    made = []
    for _ in range(count):
        y = torch.random.integers(0, 10, size=64)
        made.append((patterns[y] + 0.5 * torch.random.normal(size=(64, 1, 28, 28)), y))
    return made


def test_loss_goes_down() -> None:
    data = batches(10)
    model = NeuralNetwork()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before, guessed = evaluation_loop(data, model, loss_fn)
    losses = [loss for _ in range(4) for loss in train_loop(data, model, loss_fn, optimizer)]
    after, accuracy = evaluation_loop(data, model, loss_fn)
    assert abs(before - 6.24) < 0.3  # ln 512: as good as guessing one of 512 classes
    assert after < before - 0.4
    assert losses[0] > losses[13] > losses[26] > losses[39]
    assert accuracy > guessed


def test_prints_as_in_pytorch() -> None:
    assert repr(NeuralNetwork()) == "\n".join(
        [
            "NeuralNetwork(",
            "  (flatten): Flatten(start_dim=1, end_dim=-1)",
            "  (linear_sigmoid_stack): Sequential(",
            "    (0): Linear(in_features=784, out_features=512, bias=True)",
            "    (1): Sigmoid()",
            "    (2): Linear(in_features=512, out_features=512, bias=True)",
            "  )",
            ")",
        ]
    )
