"""Optional stage: backbones, fusion and head trained end to end, in the layout of stage 2."""
