"""The networks that HI-Diff is compared with, a file each. Importing this package registers them.

Every network that maps an image to images is a `ImageNetwork`. It says itself how it is to be used:

- `forward` takes RGB images (B, 3, H, W) and returns a tuple of images that are not clamped, one a
  stage or scale; `outputs[network.final_output]` is the restored image. A smaller output is the
  restored image at a smaller scale: its size says which.
- `side_multiple`: H and W must be multiples of it. Whoever restores an image pads it by reflection,
  right and below, and crops the result. 1: any size, the network pads by itself.
- `shift`: the network works on image − shift, so its caller subtracts this from the images it puts
  in and adds it to those that come out.
- `crop`: the side of the crops by which the published test restores an image (the fewest evenly
  spaced ones that cover it, overlaps averaged), None where it restores whole images.

Attributes whose names follow no style of this project are called so in the published weights.
"""

from hidiff.archs.baselines.base import ImageNetwork as ImageNetwork
from hidiff.archs.baselines.diffir import DiffIRS1 as DiffIRS1
from hidiff.archs.baselines.diffir import DiffIRS2 as DiffIRS2
from hidiff.archs.baselines.dmphn import DMPHN as DMPHN
from hidiff.archs.baselines.hinet import HINet as HINet
from hidiff.archs.baselines.mimo_unet import MIMOUNetPlus as MIMOUNetPlus
from hidiff.archs.baselines.mprnet import MPRNet as MPRNet
from hidiff.archs.baselines.nafnet import NAFNet as NAFNet
from hidiff.archs.baselines.nafnet import NAFNetLocal as NAFNetLocal
from hidiff.archs.baselines.stripformer import Stripformer as Stripformer
