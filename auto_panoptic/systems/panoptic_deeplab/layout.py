"""How the report draws this network; see the layout of ``panoptic_fpn``."""

MODELS = ("AutoPanopticDeepLab",)
LANES = (
    (
        {
            "sites": "backbone",
            "name": "Backbone, stage by stage",
            "stages": "MODEL.SHUFFLENET.STAGE_REPEATS",
        },
    ),
    ({"box": "backbone's features"},),
    ({"sites": "decoder", "name": "Decoders: semantic stages and head, instance stages", "parallel": True},),
    ({"sites": "center", "name": "Centre head"}, {"sites": "offset", "name": "Offset head"}),
    ({"box": "pixels grouped by centres: panoptic map"},),
)
