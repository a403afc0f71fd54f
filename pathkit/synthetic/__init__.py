"""The synthetic laboratory: slides whose truth is known to the pixel.

Stages, each a module that can be read and tested alone: `architecture` (and one module an organ: which tissue lies where),
`objects` (each cell), `paint` (stain concentrations and instances), `artefacts`, `scanner` (pixels of a laboratory),
`pyramid` (a slide file), `cohort` (patients), `readers` (people who annotate). Everything follows from one seed, and any
region can be made without making the whole.
"""

from pathkit.synthetic.architecture import Architecture
from pathkit.synthetic.artefacts import Artefact, artefact_mask, random_artefacts
from pathkit.synthetic.breast import breast
from pathkit.synthetic.cohort import (
    Truth,
    breast_cohort,
    colorectal_cohort,
    leak_cohort,
    lymph_node_cohort,
    prostate_cohort,
    slides_of,
    truth_of,
)
from pathkit.synthetic.colon import colon
from pathkit.synthetic.crowds import crowded_fields
from pathkit.synthetic.fields import Fields, SlideFields, nuclei_fields, slide_fields
from pathkit.synthetic.lymph import lymph_node
from pathkit.synthetic.markers import MARKERS
from pathkit.synthetic.mosaic import Mosaic, write_big_slide
from pathkit.synthetic.objects import nuclei, nucleus_array
from pathkit.synthetic.outlines import nucleus_outlines
from pathkit.synthetic.paint import concentrations, instances
from pathkit.synthetic.prostate import isup_grade, prostate_core
from pathkit.synthetic.pyramid import write_pyramid
from pathkit.synthetic.readers import READERS, Reader
from pathkit.synthetic.scanner import SITES, Site, scan, slide_stains
from pathkit.synthetic.tissues import CLASSES, LABELS, MITOSES, NINE_CLASSES

__all__ = [
    "CLASSES",
    "LABELS",
    "MARKERS",
    "MITOSES",
    "NINE_CLASSES",
    "READERS",
    "SITES",
    "Architecture",
    "Artefact",
    "Fields",
    "Mosaic",
    "Reader",
    "Site",
    "SlideFields",
    "Truth",
    "artefact_mask",
    "breast",
    "breast_cohort",
    "colon",
    "colorectal_cohort",
    "concentrations",
    "crowded_fields",
    "instances",
    "isup_grade",
    "leak_cohort",
    "lymph_node",
    "lymph_node_cohort",
    "nuclei",
    "nuclei_fields",
    "nucleus_array",
    "nucleus_outlines",
    "prostate_cohort",
    "prostate_core",
    "random_artefacts",
    "scan",
    "slide_fields",
    "slide_stains",
    "slides_of",
    "truth_of",
    "write_big_slide",
    "write_pyramid",
]
