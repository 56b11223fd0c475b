"""Find what is wrong with a folder of images, set it aside, and undo it.

The house, imports running down:

    scan                                    one pass over a folder, for a report
    report          tally                   what the user gets; what sums it up, with copies and arrangement
    gallery  quarantine  repair  journal    a page; moves and their undoing; mended copies; every verdict, kept
    choice                                  findings by kind, and by a list of paths
    manifest  table                         what moved, and what a stranger may not ask for; a row for each image
    folders         layout                  what is walked; splits and classes
    splits  companions                      which folders are splits; which go with images, as masks do
    workers                                 the processes that decode, asked for by jobs
    decoding/                               what runs in them, from serving down to the decoders
    findings                                KINDS: all that can be found
    verdict         suffixes  names         what a check of one file comes to; names of files and folders
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
