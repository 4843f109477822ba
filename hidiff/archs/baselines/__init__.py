"""The networks that HI-Diff is compared with, a file each. Importing this package registers them.

All are `hidiff.archs.image_network.ImageNetwork`s: they say themselves how they are to be used.
Attributes whose names follow no style of this project are called so in the published weights.
"""

from hidiff.archs.baselines.diffir import DiffIREncoder as DiffIREncoder
from hidiff.archs.baselines.dmphn import DMPHN as DMPHN
from hidiff.archs.baselines.hinet import HINet as HINet
from hidiff.archs.baselines.mimo_unet import MIMOUNetPlus as MIMOUNetPlus
from hidiff.archs.baselines.mprnet import MPRNet as MPRNet
from hidiff.archs.baselines.nafnet import NAFNet as NAFNet
from hidiff.archs.baselines.nafnet import NAFNetLocal as NAFNetLocal
from hidiff.archs.baselines.stripformer import Stripformer as Stripformer
