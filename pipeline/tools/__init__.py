"""Strippers, segmenters and harmonisers: programs of others in one table, and those that come with medsis."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.study import StudyOptions
from pipeline.tools.base import PYTHON, Kind, Tool
from pipeline.tools.bet import Bet
from pipeline.tools.builtin import BuiltIn, atlas_labels, hmrf_labels

_FreeSurfer = partial(
    Tool,
    home="FREESURFER_HOME",
    stamp="build-stamp.txt",
    get="install FreeSurfer 7.4 or newer (https://surfer.nmr.mgh.harvard.edu) and source SetUpFreeSurfer.sh",
)
_TOOLS = (
    # It ends with 0 even where it could not read its image.
    _FreeSurfer(
        name="synthsr",
        kind="harmonise",
        programs=("mri_synthsr",),
        licence="FreeSurfer licence",
        citation="Iglesias et al., Sci. Adv. 2023, doi 10.1126/sciadv.add3607",
        settings={"gpu": False, "lowfield": False},
        command="--i {image} --o {folder}/synthsr.nii.gz --threads {threads}",
        on={"lowfield": "--lowfield"},
        off={"gpu": "--cpu"},
        output="synthsr.nii.gz",
    ),
    Bet(
        name="bet",
        kind="strip",
        programs=("brainextractor",),
        package="brainextractor",
        licence="MIT",
        citation="Smith, Hum. Brain Mapp. 2002, doi 10.1002/hbm.10062; brainextractor by A. Van",
        get="pip install numba trimesh && pip install --no-deps brainextractor==0.3.0 (its viewer is not needed)",
        settings={"fraction": 0.65, "iterations": 1000, "trim": True},
        limits={"fraction": (0, 1), "iterations": (0, 10**6)},
        command="{folder}/head_2mm.nii.gz {folder}/mask_2mm.nii.gz -f {fraction:g} -n {iterations}",
        output="mask_2mm.nii.gz",
    ),
    _FreeSurfer(
        name="synthstrip",
        kind="strip",
        programs=("mri_synthstrip", "nipreps-synthstrip"),  # the second needs `model`, its weights by path
        licence="FreeSurfer licence",
        citation="Hoopes et al., NeuroImage 2022, doi 10.1016/j.neuroimage.2022.119474",
        settings={"border": 1, "gpu": False, "model": ""},
        command="-i {image} -o {folder}/brain.nii.gz -m {folder}/mask.nii.gz -b {border}",
        on={"gpu": "-g", "model": "--model {model}"},
        output="mask.nii.gz",
    ),
    Tool(
        name="hdbet",
        kind="strip",
        programs=("hd-bet",),
        package="hd-bet",
        licence="Apache-2.0",
        citation="Isensee et al., Hum. Brain Mapp. 2019, doi 10.1002/hbm.24750",
        get="pip install hd-bet==2.0.1; its weights (Zenodo 14445620) must lie in ~/hd-bet_params where there is no "
        "internet",
        settings={"device": "cpu", "tta": False},
        command="-i {image} -o {folder}/brain.nii.gz -device {device} --save_bet_mask",
        off={"tta": "--disable_tta"},
        output="brain_bet.nii.gz",
    ),
    BuiltIn(
        name="hmrf",
        kind="segment",
        wants="brain",
        table="ascending.toml",
        package="dipy",
        licence="BSD-3-Clause (dipy)",
        citation="Zhang et al., IEEE TMI 2001, doi 10.1109/42.906424; Garyfallidis et al., Front. Neuroinform. 2014",
        get="comes with medsis",
        labels=hmrf_labels,
    ),
    BuiltIn(
        name="atlas",
        kind="segment",
        wants="brain",
        table="ascending.toml",
        package="simpleitk",
        licence="Apache-2.0 (SimpleITK), BSD-3-Clause (nilearn); template: ICBM",
        citation="Ashburner & Friston, NeuroImage 2005, doi 10.1016/j.neuroimage.2005.02.018; Fonov et al., NeuroImage "
        "2011",
        get="comes with medsis",
        labels=atlas_labels,
    ),
    # Hard labels are used: a PVE file is no label map.
    Tool(
        name="fast",
        kind="segment",
        wants="brain",
        table="fast.toml",
        programs=("fast", "fsl-fast"),
        home="FSLDIR",
        stamp="etc/fslversion",
        licence="FSL licence, non-commercial",
        citation="Zhang et al., IEEE TMI 2001, doi 10.1109/42.906424",
        get="install FSL (https://fsl.fmrib.ox.ac.uk) and set FSLDIR",
        command="-t 1 -n 3 -o {folder}/fast {image}",
        output="fast_seg.nii.gz",
    ),
    # A whole head, as its authors ask for, and only the network of the whole brain: no cerebellum, hypothalamus, or bias
    # field of its own. In its labels without the corpus callosum that is white matter.
    Tool(
        name="fastsurfer",
        kind="segment",
        table="freesurfer.toml",
        programs=("run_fastsurfer.sh",),
        home="FASTSURFER_HOME",
        licence="Apache-2.0",
        citation="Henschel et al., NeuroImage 2020, doi 10.1016/j.neuroimage.2020.117012",
        get="clone https://github.com/Deep-MI/FastSurfer, set FASTSURFER_HOME; weights come with its first run",
        settings={"device": "cpu", "license": "", "python": "python3"},
        command="--t1 {image} --sid case --sd {folder} --seg_only --no_cereb --no_hypothal --no_biasfield "
        "--device {device} --py {python} --threads {threads}",
        on={"license": "--fs_license {license}"},
        output="case/mri/aseg.auto_noCCseg.mgz",
    ),
    # lesion: also find white matter lesions (id 99), which need a prior in the atlas.
    _FreeSurfer(
        name="samseg",
        kind="segment",
        table="freesurfer.toml",
        programs=("run_samseg", "samseg"),
        licence="FreeSurfer licence",
        citation="Puonti et al., NeuroImage 2016, doi 10.1016/j.neuroimage.2016.09.011",
        settings={"lesion": False},
        command="-i {image} -o {folder} --threads {threads}",
        on={"lesion": "--lesion"},
        output="seg.mgz",
    ),
    # robust: for clinical scans, slower.
    _FreeSurfer(
        name="synthseg",
        kind="segment",
        table="freesurfer.toml",
        programs=("mri_synthseg",),
        licence="FreeSurfer licence (SynthSeg itself: Apache-2.0)",
        citation="Billot et al., Med. Image Anal. 2023, doi 10.1016/j.media.2023.102789",
        settings={"robust": False, "gpu": False},
        command="--i {image} --o {folder}/labels.nii.gz --threads {threads}",
        on={"robust": "--robust"},
        off={"gpu": "--cpu"},
    ),
    # In a process of its own, like a program, so that time and memory are limited and given back.
    Tool(
        name="synthseg-torch",
        kind="segment",
        table="freesurfer.toml",
        programs=(PYTHON,),
        package="dipy",
        weights="weights",
        licence="Apache-2.0",
        citation="Billot et al., Med. Image Anal. 2023, doi 10.1016/j.media.2023.102789; PyTorch: dipy",
        get="fetch dipy's synthseg weights (figshare file 60274412) where there is internet, and name the file: "
        '[tools.synthseg-torch] weights = "synthseg.pth"',
        settings={"weights": "", "gpu": False},
        command="-m pipeline.tools.synthseg_torch {image} {folder}/labels.nii.gz {weights}",
        on={"gpu": "gpu"},
    ),
    # Its labels are those that it was trained with: GM 1, WM 2, CSF 3 by default; tissue.tables names another table.
    Tool(
        name="own",
        kind="segment",
        wants="brain",
        table="tissue.toml",
        programs=(PYTHON,),
        package="medsis",
        weights="checkpoint",
        licence="Apache-2.0",
        citation="medsis (CITATION.cff)",
        get="train one (`python train.py --model segmenter --name NAME …`), then [tools.own] "
        'checkpoint = "checkpoints/NAME"',
        settings={"checkpoint": "", "input": "brain", "device": "cpu"},
        limits={"input": ("brain", "head")},
        command="{root}/scripts/segment.py --input {image} --output {folder}/labels.nii.gz "
        "--checkpoint {checkpoint} --device {device} --threads {threads} --no-qc",
    ),
)
TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}


def configured(study: StudyOptions, name: str, kind: Kind) -> tuple[Tool, dict[str, Any]]:
    """The tool that a study calls `name`, and its settings: of [tools.<name>], which may be a variant of another tool.

    ValueError naming the key, and what is allowed, for unknown tools, tools of another kind and wrong settings.
    """
    given = dict(study.tools.get(name, {}))
    base = given.pop("tool", name)
    if base not in TOOLS or TOOLS[base].kind != kind:
        of_kind = ", ".join(tool.name for tool in _TOOLS if tool.kind == kind)
        where = f"tools.{name}.tool" if "tool" in study.tools.get(name, {}) else f"{kind}.tools"
        raise ValueError(f'{where} = "{base}": must be one of {of_kind}, or a variant: [tools.{name}] tool = "..."')
    return TOOLS[base], TOOLS[base].complete(given, f"tools.{name}:")
