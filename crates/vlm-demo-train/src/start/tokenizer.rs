//! The demo's tokenizer: byte-level BPE trained on the words of the demo. Each of these is one
//! token; any other text is encoded byte by byte.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Result, TokenizerBuilder};

use super::text_map::MapWord;

const VOCABULARY_LIMIT: usize = 900;
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// The words on which BPE is trained, as they occur in sentences, separated by `|`. Whole captions
/// are not used, because a colour and its shape could then become a single token, which for an
/// unseen pair would never occur in training.
const WORDS: [&str; 18] = [
    "system|user|assistant|\n|You| describe| pictures|.|你|会|描述|图片|。",
    "Describe| the| image|.|What| is| in| picture|?",
    "描述|这张|图片|图里|有|什么|？",
    "A| a| at| the| top| left| right| bottom| center| on| in| of| above",
    " small| large",
    " red| orange| yellow| green| cyan| blue| purple| pink",
    " circle| square| triangle| star| cross| ring",
    "一个|有一个|在一个|的|小的|大的",
    "红色|橙色|黄色|绿色|青色|蓝色|紫色|粉色",
    "圆形|方形|三角形|星形|十字形|圆环",
    "左上角|上方|右上角|左侧|中央|右侧|左下角|下方|右下角",
    "左边|上面",
    "small|large|red|orange|yellow|green|cyan|blue|purple|pink",
    "circle|square|triangle|star|cross|ring|left|right|above|below",
    " and| object| objects| one| two| picture| images| see| can| you| I",
    "The| there| are| how| many| colour| color| shape| size| where",
    "颜色|形状|大小|多少|哪里|是|吗|和|两个",
    "yes|no|Yes|No|是的|不是",
];

/// The chat template: a default system message, then the turns.
const CHAT_TEMPLATE: &str = "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}\
{{ '<s>system\\n' + system_message + '</s>\\n' }}{% else %}{{ '<s>system\\nYou describe pictures.</s>\\n' }}{% endif %}\
{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}\
{{ '<s>user\\n' + content + '</s>\\n<s>assistant\\n' }}{% elif message['role'] == 'assistant' %}\
{{ content + '</s>' + '\\n' }}{% endif %}{% endfor %}";

/// The first user turn up to the start of the answer, as the template renders it.
pub(super) fn prompt_text(question: &str) -> String {
    format!("<s>system\nYou describe pictures.</s>\n<s>user\n{question}</s>\n<s>assistant\n")
}

/// An answer with its end token, as the template renders it.
pub(super) fn answer_text(answer: &str) -> String {
    format!("{answer}</s>\n")
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into the existing folder `output`. The bytes
/// are the same on every call.
///
/// # Errors
/// A file cannot be written.
pub fn write_demo_tokenizer(output: &Path) -> Result<()> {
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCABULARY_LIMIT)
        .min_frequency(1)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.iter().map(|&text| AddedToken::from(text, true)).collect())
        .build();
    tokenizer.train(&mut trainer, WORDS.iter().flat_map(|line| line.split('|')))?;
    let map_words =
        MapWord::all().map(|word| AddedToken::from(word.text(), false).normalized(false));
    tokenizer.add_tokens(&map_words.collect::<Vec<_>>());
    tokenizer.save(output.join("tokenizer.json"), true)?;

    let special = |content: &str| {
        json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                "special": true })
    };
    let config = json!({
        "add_bos_token": false,
        "add_eos_token": false,
        "add_prefix_space": false,
        "added_tokens_decoder": { "0": special(SPECIAL[0]), "1": special(SPECIAL[1]), "2": special(SPECIAL[2]) },
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": SPECIAL[0],
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    });
    fs::write(output.join("tokenizer_config.json"), format!("{config:#}\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::Tokenizer;
    use vlm_demo::{Language, Scene};

    /// The string that stands in the prompt once for each patch of an image.
    const IMAGE_PLACEHOLDER: &str = "@";

    fn written() -> (tempfile::TempDir, Tokenizer) {
        let folder = tempfile::tempdir().unwrap();
        write_demo_tokenizer(folder.path()).unwrap();
        let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        (folder, tokenizer)
    }

    #[test]
    fn captions_have_one_token_per_word_and_decode_unchanged() {
        let (_folder, tokenizer) = written();
        for scene in Scene::all().step_by(7) {
            for language in Language::ALL {
                let caption = scene.caption(language);
                let ids = tokenizer.encode(caption.as_str(), false).unwrap();
                assert!(ids.len() <= 14, "{caption}: {:?}", ids.get_tokens());
                assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), caption);
            }
        }
    }

    #[test]
    fn special_tokens_placeholder_and_map_words_are_single_tokens() {
        let (_folder, tokenizer) = written();
        for (id, text) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(text), Some(id as u32));
        }
        let run = tokenizer.encode(IMAGE_PLACEHOLDER.repeat(49), false).unwrap();
        assert_eq!(run.get_ids(), vec![tokenizer.token_to_id(IMAGE_PLACEHOLDER).unwrap(); 49]);
        for word in MapWord::all() {
            assert_eq!(tokenizer.encode(word.text(), false).unwrap().len(), 1, "{}", word.text());
        }
        assert!(tokenizer.get_vocab_size(true) <= 1000);
    }

    #[test]
    fn template_renders_the_text_of_the_language_models_training() {
        let messages = minijinja::context! { messages => [
            minijinja::context! { role => "user", content => "a question" },
            minijinja::context! { role => "assistant", content => "an answer" },
        ]};
        let rendered = minijinja::Environment::new().render_str(CHAT_TEMPLATE, messages).unwrap();
        assert_eq!(rendered, prompt_text("a question") + &answer_text("an answer"));
    }

    #[test]
    fn any_text_decodes_unchanged() {
        let (_folder, tokenizer) = written();
        for text in ["Zażółć gęślą jaźń", "図 🙂 ÿ\u{0}", "fn main() {}\n"] {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
    }

    #[test]
    fn files_have_the_same_bytes_every_time() {
        let (a, _) = written();
        let (b, _) = written();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            assert_eq!(
                fs::read(a.path().join(name)).unwrap(),
                fs::read(b.path().join(name)).unwrap()
            );
        }
    }
}
