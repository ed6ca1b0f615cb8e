"""Package metadata. Tool settings are in pyproject.toml.

The OpenMMLab toolboxes are no requirements and no extras: pip would build mmcv in an isolated
environment, silently without its compiled ops. `make install` installs them in the right order.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_requirements(name):
    """Return the requirement lines of requirements/<name>.txt."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith('#')]


setup(
    name='mmlavit',
    version=runpy.run_path(str(ROOT / 'mmlavit' / 'version.py'))['__version__'],
    description='LaViT, a less-attention vision transformer, for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmlavit', 'mmlavit.*']),
    python_requires='>=3.10,<3.13',
    install_requires=read_requirements('runtime'),
    extras_require={
        'optional': read_requirements('optional'),
        'tests': read_requirements('tests'),
    },
)
