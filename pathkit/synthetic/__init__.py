"""Synthetic slides whose truth is known to the pixel: for learning, for tests, never as evidence about patients.

A slide is made in five stages, each a module that can be read and tested alone, all from one seed:

*architecture* (which tissue where, in microns) -> *objects* (every nucleus) -> *paint* (concentrations of haematoxylin and
eosin) -> *scanner* (stain vectors, light, optics, noise: pixels) -> *pyramid* (a tiled JPEG TIFF); *cohort* makes many.

Random numbers come from a hash of the seed and the place, not from a stream, so that any region can be made without the
rest, in any order and by any number of processes, with the same result.
"""

from pathkit.synthetic.architecture import Architecture, lymph_node
from pathkit.synthetic.cohort import lymph_node_cohort
from pathkit.synthetic.objects import nuclei
from pathkit.synthetic.paint import concentrations
from pathkit.synthetic.pyramid import write_pyramid
from pathkit.synthetic.scanner import SITES, Site, scan

__all__ = [
    "SITES",
    "Architecture",
    "Site",
    "concentrations",
    "lymph_node",
    "lymph_node_cohort",
    "nuclei",
    "scan",
    "write_pyramid",
]
