"""Package metadata. Tool settings are in pyproject.toml.

The OpenMMLab toolboxes are neither requirements nor extras, because each exists under two names: see
requirements/mminstall.txt (maintained builds) and openmmlab.txt (official releases).
"""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read_requirements(name):
    """Return the requirement lines of requirements/<name>.txt."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith('#')]


class BuildWithZoo(build_py):
    """Put configs, tools, weights and the model index in the folder .mim of the package, where ``mim`` looks for them.

    The ops for mmcv go there too: the check of the environment names the folder to install them from.
    """

    def run(self):
        """Build, then copy. An editable installation uses the files of the clone."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmlavit', '.mim')
        shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
        ignore = shutil.ignore_patterns('__pycache__', 'dev', 'build', '*.egg-info')
        for folder in ('configs', 'tools', 'ops', 'weights'):
            shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
        shutil.copy(ROOT / 'model-index.yml', target)


setup(
    name='mmlavit',
    version=runpy.run_path(str(ROOT / 'mmlavit' / 'version.py'))['__version__'],
    description='LaViT, a less-attention vision transformer, for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmlavit', 'mmlavit.*', 'mmlavit_serve']),
    package_data={'mmlavit.analysis.pages': ['*.html', '*.css', '*.js']},
    cmdclass={'build_py': BuildWithZoo},
    python_requires='>=3.10,<3.13',
    install_requires=read_requirements('runtime'),
    extras_require={
        'optional': read_requirements('optional'),
        'deploy': read_requirements('deploy'),
        'tests': read_requirements('tests'),
        'docs': read_requirements('docs'),
    },
)
