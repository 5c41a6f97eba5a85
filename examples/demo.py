"""From training to a checked ONNX file and to integers, on real images: what `make demo` runs.

Trains a small CNN with GEM on handwritten digits, saves model.pt, exports it in three forms with the command
line and runs each in onnxruntime; quantizes it in four schemes and runs each with integers only; draws the
activation and the confusion matrix; exports C and runs it on an emulated Cortex-M4; says what the 8-bit integers
lose and why, and what they take there; and runs every engine beside the simulator. Everything lands in ./demo.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnxruntime
import torch
from mnist import cnn, load, train

import gemedge.nn as gnn
from gemedge import Activation
from gemedge.export.run import onnxruntime_options

mpl.use("Agg")
from matplotlib import pyplot as plt

FORMS = ("function", "primitive", "custom")
SCHEMES = ("int8", "int16x8", "q7", "q15")
TARGET = "cortex-m4"
CALIBRATION = 500  # training images
FOLDER = Path("demo")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    images, labels, test_images, test_labels = load()
    start = time.perf_counter()
    model = cnn(lambda: gnn.GEM(1))
    train(model, images, labels)
    print(f"trained a CNN with GEM on {len(images):,} digits in {time.perf_counter() - start:.1f} s")
    gnn.save(model, FOLDER / "model.pt", test_images[:1])
    print(f"saved {FOLDER / 'model.pt'}\n")
    with torch.no_grad():
        reference = model(test_images).numpy()
    predictions = {"torch": reference.argmax(1)}
    for form in FORMS:
        predictions[f"onnxruntime, {form}"] = exported(form, test_images.numpy())
    print_table(predictions, test_labels.numpy())
    print()
    np.savez(FOLDER / "calibration.npz", images[:CALIBRATION].numpy())
    np.savez(FOLDER / "test.npz", test_images.numpy())
    print_schemes({scheme: quantized(scheme) for scheme in SCHEMES}, reference, test_labels.numpy())
    draw_activation(FOLDER / "activation.png")
    draw_confusion(predictions["onnxruntime, function"], test_labels.numpy(), FOLDER / "confusion.png")
    print(f"\nplots: {FOLDER / 'activation.png'}, {FOLDER / 'confusion.png'}\n")
    np.save(FOLDER / "labels.npy", test_labels.numpy())
    page = FOLDER / "report-int8.html"
    files = [str(FOLDER / name) for name in ("model.pt", "model-int8.gemq")]
    data = ["--data", str(FOLDER / "test.npz"), "--labels", str(FOLDER / "labels.npy")]
    gemedge("report", *files, *data, "--target", TARGET, "--html", str(page), "--force")
    print(f"the report, for a browser: {page.resolve().as_uri()}\n")
    sources = str(FOLDER / "c")
    gemedge("export", files[1], "--format", "c", "-o", sources, "--force", "-q")
    gemedge("run", sources, "--target", TARGET, *data[:2])
    print(f"same integers at every layer on {targets(files[1], *data[:2])} targets")


def targets(model: str, *data: str) -> int:
    """On how many targets the C has the simulator's integers; every other engine is shown beside."""
    command = ["verify", model, *data]
    print("$ gemedge", *command, flush=True)
    told = subprocess.run([sys.executable, "-m", "gemedge", *command], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    print(told.stdout)
    return len(re.findall(r"\bC on [^\n]* equal\b", told.stdout))


def exported(form: str, images: np.ndarray) -> np.ndarray:
    """The classes that the exported model gives; the custom form needs gemedge's kernel."""
    path = FOLDER / f"model-{form}.onnx"
    command = ["export", str(FOLDER / "model.pt"), "--format", "onnx", "--gem", form, "-o", str(path), "--force"]
    gemedge(*command)
    options = onnxruntime_options() if form == "custom" else onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(logits).argmax(1)


def quantized(scheme: str) -> np.ndarray:
    """The logits that the model in integers gives for the test images."""
    model, outputs = FOLDER / f"model-{scheme}.gemq", FOLDER / f"outputs-{scheme}.npz"
    images = str(FOLDER / "calibration.npz")
    gemedge(
        "quantize", str(FOLDER / "model.pt"), "--data", images, "--scheme", scheme, "-o", str(model), "--force", "-q"
    )
    gemedge("simulate", str(model), "--data", str(FOLDER / "test.npz"), "-o", str(outputs), "--force", "-q")
    with np.load(outputs) as arrays:
        (logits,) = arrays.values()
    return np.asarray(logits)


def gemedge(*command: str) -> None:
    """Run the command line, and show what it is given and what it prints."""
    print("$ gemedge", *command, flush=True)
    subprocess.run([sys.executable, "-m", "gemedge", *command], check=True)  # noqa: S603
    if "-q" not in command:
        print()


def print_table(predictions: dict[str, np.ndarray], labels: np.ndarray) -> None:
    print(f"{'model':<24}{'test accuracy':>14}{'same class as torch':>22}")
    for name, classes in predictions.items():
        accuracy, agreement = (classes == labels).mean(), (classes == predictions["torch"]).mean()
        print(f"{name:<24}{accuracy:>14.1%}{agreement:>22.1%}")


def print_schemes(logits: dict[str, np.ndarray], reference: np.ndarray, labels: np.ndarray) -> None:
    """What each scheme keeps of the float model, and its bytes."""
    print(f"\n{'integers':<10}{'test accuracy':>14}{'same class as torch':>22}{'SQNR, dB':>10}{'file, bytes':>13}")
    for scheme, values in logits.items():
        classes = values.argmax(1)
        accuracy, agreement = (classes == labels).mean(), (classes == reference.argmax(1)).mean()
        sqnr = 10 * np.log10(np.square(reference).sum() / np.square(values - reference).sum())
        size = (FOLDER / f"model-{scheme}.gemq").stat().st_size
        print(f"{scheme:<10}{accuracy:>14.1%}{agreement:>22.1%}{sqnr:>10.1f}{size:>13,}")


def draw_activation(path: Path) -> None:
    x = np.linspace(-3, 3, 601)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    functions = [Activation.gem(1), Activation.gem(2), Activation.segem(1, 0.5)]
    for activation in functions:
        left.plot(x, activation(x), label=str(activation))
        right.plot(x, activation.derivative(x), label=str(activation))
    left.plot(x, np.maximum(x, 0), "k:", label="ReLU")
    left.set(title="activation", xlabel="x")
    right.set(title="derivative", xlabel="x")
    left.legend()
    figure.savefig(path, dpi=120)


def draw_confusion(classes: np.ndarray, labels: np.ndarray, path: Path) -> None:
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, classes), 1)
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.imshow(counts, cmap="Blues", norm=mpl.colors.PowerNorm(0.4))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", color="white" if row == column else "black")
    axes.set(xticks=range(10), yticks=range(10), xlabel="predicted by the exported model", ylabel="digit")
    axes.set_title(f"{(classes == labels).mean():.1%} of {len(labels):,} test digits")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
