//! The vision transformers of timm that open_clip names: SigLIP's.

use super::OpenClip;
use crate::keys::shortened;
use crate::{ShapeError, VisionConfig};

/// A vision transformer of timm 1.0.
struct TimmTower {
    /// Its name, or the start of the names of towers that differ in the image size alone.
    name: &'static str,
    patch_size: i64,
    width: i64,
    layers: i64,
    heads: i64,
    intermediate: i64,
    hidden_act: &'static str,
}

/// The towers of SigLIP in timm. Most of them have the exact GELU, which Hugging Face approximates.
/// The first entry that fits a name holds.
const TIMM_TOWERS: [TimmTower; 7] = [
    timm("vit_base_patch32_siglip_256", 32, [768, 12, 12, 3072], "gelu_pytorch_tanh"),
    timm("vit_base_patch16_siglip_", 16, [768, 12, 12, 3072], "gelu"),
    timm("vit_large_patch16_siglip_512", 16, [1024, 24, 16, 4096], "gelu_pytorch_tanh"),
    timm("vit_large_patch16_siglip_", 16, [1024, 24, 16, 4096], "gelu"),
    timm("vit_so400m_patch14_siglip_", 14, [1152, 27, 16, 4304], "gelu"),
    timm("vit_so400m_patch16_siglip_", 16, [1152, 27, 16, 4304], "gelu_pytorch_tanh"),
    timm("vit_giantopt_patch16_siglip_", 16, [1536, 40, 16, 6144], "gelu_pytorch_tanh"),
];

/// A tower with `[width, layers, heads, width of the MLP]`.
const fn timm(
    name: &'static str,
    patch_size: i64,
    [width, layers, heads, intermediate]: [i64; 4],
    hidden_act: &'static str,
) -> TimmTower {
    TimmTower { name, patch_size, width, layers, heads, intermediate, hidden_act }
}

impl OpenClip {
    /// A vision transformer of timm: SigLIP's.
    pub(super) fn timm_tower(&self) -> Result<VisionConfig, ShapeError> {
        let tower = self.tower();
        let found = tower["timm_model_name"].as_str().unwrap_or_default();
        // Behind a dot is the name of a set of weights.
        let name = found.split('.').next().unwrap_or_default();
        let is_number = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit());
        let fits = |tower: &&TimmTower| name.strip_prefix(tower.name).is_some_and(is_number);
        let Some(known) = TIMM_TOWERS.iter().find(fits) else {
            return Err(ShapeError::Config(format!(
                "timm_model_name is {found:?}; of timm's towers only those of SigLIP of fixed \
                 resolution (vit_…_siglip_…) are supported; use the model in Hugging Face's \
                 format, if there is one"
            )));
        };
        if tower["timm_pool"] != "map" {
            return Err(ShapeError::Config(format!(
                "timm_pool is {}; expected \"map\", with which {found} has a norm after its blocks",
                shortened(&tower["timm_pool"])
            )));
        }
        Ok(VisionConfig {
            hidden_size: known.width,
            intermediate_size: known.intermediate,
            num_hidden_layers: known.layers,
            num_attention_heads: known.heads,
            image_size: self.image_size()?,
            patch_size: known.patch_size,
            hidden_act: known.hidden_act.into(),
            ..VisionConfig::siglip()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::tower;
    use crate::VisionFamily;

    #[test]
    fn siglip_of_timm_is_recognised_by_its_name() {
        let named = |name: &str, pool: &str| {
            let vision = json!({"image_size": 384, "timm_model_name": name, "timm_pool": pool,
                "timm_proj": "none", "timm_model_pretrained": false});
            tower(vision).vision().map_err(|error| error.to_string())
        };
        let large = named("vit_so400m_patch14_siglip_384", "map").unwrap();
        assert_eq!((large.family, large.hidden_size), (VisionFamily::Siglip, 1152));
        assert_eq!((large.intermediate_size, large.num_patches()), (4304, 27 * 27));
        assert_eq!(large.hidden_act, "gelu");
        let approximated = named("vit_large_patch16_siglip_512.v2_webli", "map").unwrap();
        assert_eq!(approximated.hidden_act, "gelu_pytorch_tanh");
        for (name, pool, expected) in [
            ("vit_base_patch16_siglip_gap_224", "map", "only those of SigLIP"),
            ("convnext_base", "", "timm_model_name is \"convnext_base\""),
            ("vit_base_patch16_siglip_224", "avg", "timm_pool is \"avg\""),
        ] {
            let error = named(name, pool).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
