"""The feature extractor for 8x8 digits: a small classifier whose weights ship with callkit.

    python -m callkit.digits_extractor

trains it anew (a minute) and writes assets/digits_extractor.safetensors with its record beside it.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from callkit import data

WEIGHTS = Path(__file__).parent / "assets" / "digits_extractor.safetensors"


class DigitsClassifier(nn.Module):
    """Images float (B, 1, 8, 8) in [-1, 1] to (64 features, 10 logits)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(F.dropout(features, 0.5, self.training))


def fit() -> tuple[DigitsClassifier, dict]:
    """Train on 80 % of the digits, stratified; (model in eval mode, record with the accuracy on the other 20 %)."""
    steps, batch_size, seed = 2_000, 64, 0
    digits = data.load("digits")
    train, test = train_test_split(range(len(digits)), test_size=0.2, stratify=digits.labels.numpy(), random_state=seed)
    images = data.to_float(digits.images)
    torch.manual_seed(seed)
    model = DigitsClassifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    train = torch.tensor(train)
    for _ in range(steps):
        index = train[torch.randint(len(train), (batch_size,))]
        shift = torch.randint(-1, 2, (2,)).tolist()  # a pixel each way, so that features do not hang on position
        x = images[index].roll(shift, dims=(2, 3))
        loss = F.cross_entropy(model(x)[1], digits.labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = model(images[test])[1].argmax(1) == digits.labels[test]
    return model, {
        "what": "classifier of scikit-learn's 8x8 digits; its 64 penultimate features are callkit's extractor 'digits'",
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "train_images": len(train),
        "test_images": len(test),
        "test_accuracy": float(right.float().mean()),
        "torch": torch.__version__,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    model, record = fit()
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(model.state_dict(), WEIGHTS)
    WEIGHTS.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
