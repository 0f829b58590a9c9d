"""How the report draws this network; run by itself, without the package around it: plain values only.

``LANES`` lists rows from the input to the output. A row holds lanes, searched sites of one name, and boxes,
parts that are not searched. ``parallel`` sites do not follow one another; a lane that ``follows`` reads the
one to its left. ``stages`` is the config key of the numbers of sites in a lane's stages, ``published`` these
numbers in the published space.
"""

MODELS = ("AutoPanopticFPN",)
LANES = (
    (
        {
            "sites": "backbone",
            "name": "Backbone: ShuffleNetV2 blocks, stage by stage",
            "stages": "MODEL.SHUFFLENET.STAGE_REPEATS",
            "published": (8, 8, 16, 8),
        },
    ),
    ({"box": "feature pyramid F"},),
    (
        {"sites": "sem_seg", "name": "Semantic subnet: F to S"},
        {"sites": "attention.f2b", "name": "Attention F to S, by level", "parallel": True, "follows": True},
        {"sites": "attention.b2f", "name": "Attention S to F, by level", "parallel": True},
    ),
    (
        {"box": "semantic classifier, reads S'"},
        {"box": "proposals and boxes, read F'"},
        {"sites": "mask", "name": "Mask head, reads F'"},
    ),
    ({"box": "merging: panoptic map"},),
)
