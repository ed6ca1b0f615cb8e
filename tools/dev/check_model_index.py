#!/usr/bin/env python
"""Check model-index.yml and the metafiles it imports, by which mim lists the models, against the configs."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

INDEX = 'model-index.yml'
NO_MODELS = {'_base_', 'distributed'}  # folders

# The fields that mim (its library model-index) knows by name, and what our metadata has besides. mim keeps others
# without a word, so a typing error would go unnoticed.
INDEX_FIELDS = ('Import',)
METAFILE_FIELDS = ('Collections', 'Models')
COLLECTION_FIELDS = ('Name', 'Metadata', 'Paper', 'README', 'Code')
MODEL_FIELDS = ('Name', 'In Collection', 'Config', 'Metadata', 'Results', 'Weights', 'Paper', 'README', 'Code', 'Image')
RESULT_FIELDS = ('Task', 'Dataset', 'Metrics')
METADATA_FIELDS = (
    *('Architecture', 'Training Data', 'Training Techniques', 'Training Resources', 'Batch Size', 'Epochs'),
    *('Iterations', 'Input Size', 'FLOPs', 'Parameters', 'Training Memory (GB)'),
)
COUNTS = ('Epochs', 'Iterations', 'FLOPs', 'Parameters', 'Batch Size')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Prints a line for each mistake; exit code 1 if there is one.'
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=Path(__file__).resolve().parents[2],
        metavar='DIR',
        help=f'folder with {INDEX} and configs/; default: this repository',
    )
    return parser.parse_args()


def main() -> None:
    """Check and print."""
    root = parse_args().root
    if not (root / INDEX).is_file():
        print(f'error: {root} has no {INDEX}; --root takes a clone of the repository', file=sys.stderr)
        sys.exit(2)
    mistakes = list(check_index(root))
    for mistake in mistakes:
        print(mistake)
    if mistakes:
        print(f'{len(mistakes)} mistake{"s" if len(mistakes) > 1 else ""} in {INDEX} and its metafiles')
        sys.exit(1)
    print(f'OK: {INDEX} names every config of {root / "configs"} once')


def check_index(root: Path) -> Iterator[str]:
    """Yield the mistakes of an index, of the metafiles it imports, and between them and the configs.

    Args:
        root (Path): Folder with ``model-index.yml`` and ``configs/``.
    """
    index, mistakes = read(root, INDEX, INDEX_FIELDS)
    yield from mistakes
    imported = index.get('Import') or []
    present = {relative(root, path) for path in (root / 'configs').rglob('*.yml')}
    for name in repeated(imported):
        yield f'{INDEX}: imports {name} twice'
    for name in sorted(present - set(imported)):
        yield f'{INDEX}: does not import {name}'

    models, collections = [], []
    for name in dict.fromkeys(imported):
        metafile, mistakes = read(root, name, METAFILE_FIELDS)
        yield from mistakes
        models += [(name, model) for model in metafile.get('Models') or []]
        collections += [(name, collection) for collection in metafile.get('Collections') or []]
    for name, collection in collections:
        yield from check_collection(root, name, collection)
    known = [collection.get('Name') for _, collection in collections]
    for name, model in models:
        yield from check_model(root, name, model, known)
    for kind, entries in (('collection', collections), ('model', models)):
        for title in repeated(entry.get('Name') for _, entry in entries):
            yield f'{INDEX}: two {kind}s are called {title!r}'
    for title in known:
        if all(model.get('In Collection') != title for _, model in models):
            yield f'{INDEX}: no model is in the collection {title!r}'

    named = [model.get('Config') for _, model in models]
    for config in repeated(named):
        yield f'{INDEX}: {config} belongs to two models'
    for config in sorted(find_configs(root) - set(named)):
        yield f'{config}: is in no metafile; add a model to the nearest of {", ".join(imported) or "them"}'


def find_configs(root: Path) -> set[str]:
    """Find the configs that each are a model: neither bases nor other ways to run a model."""
    configs = (relative(root, path) for path in (root / 'configs').rglob('*.py'))
    return {config for config in configs if not NO_MODELS & set(config.split('/'))}


def check_collection(root: Path, file: str, collection: Mapping[str, Any]) -> Iterator[str]:
    """Yield the mistakes of one entry of ``Collections`` in a metafile."""
    where = f'{file}: collection {collection.get("Name")!r}'
    yield from unknown(where, collection, COLLECTION_FIELDS)
    for field in ('Name', 'README', 'Paper'):
        if not collection.get(field):
            yield f'{where}: has no {field}'
    if collection.get('README') and not (root / collection['README']).is_file():
        yield f'{where}: README {collection["README"]} does not exist (it counts from the root)'
    paper = collection.get('Paper') or {}
    if isinstance(paper, Mapping):
        yield from unknown(f'{where}: Paper', paper, ('Title', 'URL'))
    yield from check_metadata(where, collection.get('Metadata') or {})


def check_model(root: Path, file: str, model: Mapping[str, Any], collections: Collection[str]) -> Iterator[str]:
    """Yield the mistakes of one entry of ``Models`` in a metafile."""
    where = f'{file}: model {model.get("Name")!r}'
    yield from unknown(where, model, MODEL_FIELDS)
    for field in ('Name', 'In Collection', 'Config', 'Metadata'):
        if not model.get(field):
            yield f'{where}: has no {field}'
    if model.get('In Collection') not in collections:
        yield f'{where}: no metafile has its collection {model.get("In Collection")!r}'
    config = model.get('Config') or ''
    if config and config not in find_configs(root):
        yield f'{where}: {config} is no config of a model (paths count from the root)'
    elif config and model.get('Name') != Path(config).stem:
        # `mim download --config` and `mim train` mean the same config by this name.
        yield f'{where}: expected the name of its config, {Path(config).stem!r}'
    weights = model.get('Weights')
    if weights and not re.search(r'^https://.+-[0-9a-f]{8}\.pth$', weights):
        yield f'{where}: Weights {weights} is no address of a file that publish_model.py made'
    metadata = model.get('Metadata') or {}
    yield from check_metadata(where, metadata)
    for field in ('Parameters', 'FLOPs'):
        if field not in metadata:
            yield f'{where}: Metadata has no {field}; tools/analysis_tools/get_flops.py counts'
    results = model.get('Results') or []
    for result in results if isinstance(results, list) else [results]:
        yield from unknown(f'{where}: Results', result, RESULT_FIELDS)
        for field in ('Task', 'Dataset'):
            if not isinstance(result.get(field), str):
                yield f'{where}: Results: {field} is {result.get(field)!r}, expected a name'
        metrics = result.get('Metrics')
        if metrics is not None and not (isinstance(metrics, Mapping) and all(map(is_number, metrics.values()))):
            yield f'{where}: Results: Metrics is {metrics!r}, expected names with numbers, or none at all'


def check_metadata(where: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the mistakes of the ``Metadata`` of a model or collection."""
    yield from unknown(f'{where}: Metadata', metadata, METADATA_FIELDS)
    for field, value in metadata.items():
        if field in COUNTS and not (is_number(value) and value > 0):
            yield f'{where}: Metadata: {field} is {value!r}, expected a number'
        # mim joins lists with commas: it stops at an empty one, and at one of anything but text.
        if isinstance(value, list) and not (value and all(isinstance(item, str) for item in value)):
            yield f'{where}: Metadata: {field} is {value!r}, expected a list of words'


def read(root: Path, name: str, fields: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Read a YAML file of the index; give what it says and its mistakes.

    Args:
        root (Path): The repository.
        name (str): The file, from there.
        fields (Collection[str]): What it may have.
    """
    if not (root / name).is_file():
        return {}, [f'{INDEX}: imports {name}, which does not exist']
    try:
        content = yaml.safe_load((root / name).read_text())
    except yaml.YAMLError as error:
        return {}, [f'{name}: is no YAML ({" ".join(str(error).split())})']
    if not isinstance(content, dict):
        return {}, [f'{name}: is empty or a list, expected {" and ".join(fields)}']
    return content, list(unknown(name, content, fields))


def unknown(where: str, entry: Mapping[str, Any], fields: Collection[str]) -> Iterator[str]:
    """Yield the fields of an entry that mim does not know."""
    for field in entry:
        if field not in fields:
            yield f'{where}: unknown field {field!r}, expected some of {", ".join(fields)}'


def repeated(values: Iterator[Any] | Collection[Any]) -> list[Any]:
    """Give the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1 and value is not None]


def is_number(value: Any) -> bool:
    """Tell numbers from everything else."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def relative(root: Path, path: Path) -> str:
    """Give a path as the index has it."""
    return path.relative_to(root).as_posix()


if __name__ == '__main__':
    main()
