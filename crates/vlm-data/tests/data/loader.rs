//! Order and shape of the loader's batches, and its threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use serde_json::json;
use vlm_data::{
    Batch, ChatTokenizer, DataError, IGNORE_INDEX, ImageData, ImagePlaceholder, ImagePosition,
    Loader, LoaderConfig, Padding, Reject, RejectReason, Role, Row, RowError, RowImage, RowSource,
    Turn,
};

use crate::tiny::{Folder, TEMPLATE, TOKENS_PER_IMAGE, config, row, with, write_tokenizer};

/// 23 rows, with two images, one or none, one of them bad.
fn mixed_rows() -> Folder {
    let folder = Folder::new();
    let mut rows = Vec::new();
    for k in 0..23_u8 {
        let name = format!("{k}.png");
        folder.add_image(&name, k * 10);
        let answer = "a".repeat(1 + usize::from(k) % 7);
        rows.push(match k % 4 {
            0 => row("hi", &answer, ""),
            1 => row("<image><image>", &answer, &format!("{name}, 0.png")),
            _ => row("<image>\nwhat?", &answer, &name),
        });
    }
    rows[9] = row("<image>", "x", "none.png");
    folder.write_rows(&rows);
    folder
}

fn batches(loader: &Loader, epoch: u64, start: usize) -> Vec<Batch> {
    loader.epoch(epoch, start).map(Result::unwrap).collect()
}

#[test]
fn batches_are_the_same_whatever_the_number_of_workers() {
    let folder = mixed_rows();
    for bucket_window in [0, 8] {
        let loader = |num_workers| {
            folder.loader(with(config(), |c| {
                c.num_workers = num_workers;
                c.bucket_window = bucket_window;
            }))
        };
        let expected = batches(&loader(0), 1, 0);
        assert_eq!(expected.len(), loader(0).batches_per_epoch());
        for num_workers in [1, 2, 4] {
            assert!(batches(&loader(num_workers), 1, 0) == expected, "{num_workers} workers");
        }
        assert!(batches(&loader(2), 2, 0) != expected);
        assert!(batches(&loader(2), 1, 4) == expected[4..]);
        assert!(batches(&loader(2), 1, 6).is_empty());
    }
}

#[test]
fn rows_of_equally_many_tokens_share_a_batch_however_long_their_text_is() {
    let folder = Folder::new();
    // Five letters that are one token, and one that is one.
    let spelled = |word: &str, tokens: usize| row("q", &word.repeat(tokens), "");
    let lengths = [3, 9, 20, 30];
    let rows = lengths.map(|tokens| [spelled("<unk>", tokens), spelled("a", tokens)]);
    let rows: Vec<_> = [rows.concat(), rows.concat()].concat();
    folder.write_rows(&rows);
    for batch in batches(&folder.loader(with(config(), |c| c.bucket_window = 16)), 0, 0) {
        assert_eq!(batch.lengths, [batch.lengths[0]; 4]);
    }
    let unsorted = batches(&folder.loader(with(config(), |c| c.bucket_window = 0)), 0, 0);
    assert!(unsorted.iter().any(|batch| batch.lengths != [batch.lengths[0]; 4]));
}

/// The rows that were drawn for a batch, usable or not.
fn drawn(batch: &Batch) -> Vec<usize> {
    let rejected = batch.rejected.iter().map(|rejected| rejected.row);
    let mut rows: Vec<usize> = batch.rows.iter().copied().chain(rejected).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_global_batch_holds_the_same_rows_on_1_2_and_4_ranks() {
    let folder = mixed_rows();
    for (bucket_window, shuffle) in [(0, false), (0, true), (16, true)] {
        let rank_batches = |rank, world_size| {
            let config = with(config(), |c| {
                c.batch_size = 8 / world_size;
                c.rank = rank;
                c.world_size = world_size;
                c.bucket_window = bucket_window;
                c.shuffle = shuffle;
            });
            batches(&folder.loader(config), 1, 0)
        };
        let alone: Vec<Vec<usize>> = rank_batches(0, 1).iter().map(drawn).collect();
        assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 7]);
        for world_size in [2, 4] {
            let ranks: Vec<_> = (0..world_size).map(|r| rank_batches(r, world_size)).collect();
            for (index, expected) in alone.iter().enumerate() {
                let shares: Vec<_> = ranks.iter().map(|batches| drawn(&batches[index])).collect();
                let sizes = || shares.iter().map(Vec::len);
                assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
                let mut together = shares.concat();
                together.sort_unstable();
                assert_eq!(together, *expected, "{world_size} ranks, batch {index}");
            }
        }
    }
}

#[test]
fn a_rank_without_a_row_gets_an_empty_batch_in_its_turn() {
    let folder = mixed_rows();
    for num_workers in [0, 2] {
        let config = with(config(), |c| {
            c.batch_size = 3;
            c.rank = 0;
            c.world_size = 7;
            c.num_workers = num_workers;
        });
        // 21 rows make the first batch, and 2 are left for 7 ranks.
        let made = batches(&folder.loader(config), 0, 0);
        assert_eq!(made.iter().map(|batch| drawn(batch).len()).collect::<Vec<_>>(), [3, 0]);
        assert_eq!((made[1].index, made[1].seq_len), (1, 0));
    }
}

#[test]
fn rows_of_different_image_counts_share_a_batch() {
    let folder = mixed_rows();
    let loader = folder.loader(with(config(), |c| c.shuffle = false));
    let first = batches(&loader, 0, 0).remove(0);
    assert_eq!((first.index, first.batch_size), (0, 4));
    assert_eq!(first.rows, [0, 1, 2, 3]);
    // "<s>user\n" is 6 tokens.
    let places = [(1, 6), (1, 6 + TOKENS_PER_IMAGE), (2, 6), (3, 6)];
    assert_eq!(first.images, places.map(|(row, start)| ImagePosition { row, start }));
    match &first.image_data {
        ImageData::Pixels(pixels) => assert_eq!(pixels.len(), 4 * 8 * 8 * 3),
        other => panic!("{other:?}"),
    }
    let image_token_id = ChatTokenizer::from_dir(folder.path()).unwrap().image_token_id();
    for ImagePosition { row, start } in first.images {
        let at = row * first.seq_len + start;
        let run = &first.input_ids[at..at + TOKENS_PER_IMAGE];
        assert!(run.iter().all(|&id| id == image_token_id));
    }
    // The answer "a" and "aa" and so on, "</s>" and the newline.
    let expected: usize = [1, 2, 3, 4].iter().map(|answer| answer + 2).sum();
    assert_eq!(first.num_supervised, expected);
    let supervised = first.labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
    assert_eq!(supervised, expected);
    assert_eq!(first.seq_len, *first.lengths.iter().max().unwrap());
}

#[test]
fn padding_to_the_limit_changes_nothing_but_the_shape() {
    let folder = mixed_rows();
    let loader = |padding| folder.loader(with(config(), |c| c.padding = padding));
    let longest = batches(&loader(Padding::Longest), 0, 0);
    let max = batches(&loader(Padding::Max), 0, 0);
    for (a, b) in longest.iter().zip(&max) {
        assert_eq!(b.seq_len, 79);
        assert_eq!((a.num_supervised, &a.lengths), (b.num_supervised, &b.lengths));
        for row in 0..a.batch_size {
            let short = &a.labels[row * a.seq_len..(row + 1) * a.seq_len];
            let long = &b.labels[row * b.seq_len..(row + 1) * b.seq_len];
            assert_eq!(short, &long[..a.seq_len]);
            assert!(long[a.seq_len..].iter().all(|&label| label == IGNORE_INDEX));
        }
    }
}

#[test]
fn without_an_image_processor_places_come_without_pixels() {
    let folder = mixed_rows();
    let loader = Loader::new(folder.source(), folder.tokenizer(), None, config()).unwrap();
    let batch = batches(&loader, 0, 0).remove(0);
    assert!(batch.image_data == ImageData::None && !batch.images.is_empty());
}

#[test]
fn settings_that_make_no_batch_are_refused() {
    let folder = mixed_rows();
    let refused = |config: LoaderConfig| {
        let source = folder.source();
        Loader::new(source, folder.tokenizer(), None, config).err().unwrap().to_string()
    };
    assert!(refused(with(config(), |c| c.batch_size = 0)).contains("`batch_size`"));
    assert!(
        refused(with(config(), |c| {
            c.rank = 2;
            c.world_size = 2;
        }))
        .contains("rank 2 of 2")
    );
    assert!(refused(with(config(), |c| c.max_seq_len = 1)).contains("`max_seq_len`"));
    let config = with(config(), |c| {
        c.batch_size = 24;
        c.drop_last = true;
    });
    assert!(refused(config).contains("23 rows cannot fill one batch of 24"));
}

/// Rows that are counted as they are read; one of them may panic.
struct Counted {
    num_read: AtomicUsize,
    panics_at: Option<usize>,
}

impl RowSource for Counted {
    fn len(&self) -> usize {
        1000
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        self.num_read.fetch_add(1, Ordering::Relaxed);
        assert_ne!(Some(index), self.panics_at, "row out of luck");
        let turns = vec![Turn::new(Role::User, "q"), Turn::new(Role::Assistant, "a")];
        Ok(Row { turns, images: Vec::new() })
    }

    fn image_bytes(&self, _: usize, _: usize, _: &RowImage) -> Result<Bytes, RowError> {
        Err(Reject::new(RejectReason::MissingImage, "none").into())
    }

    fn locate(&self, index: usize) -> String {
        format!("made-up:{index}")
    }

    /// Asked of a whole window of rows, which is not what is counted here.
    fn num_tokens(&self, _: usize) -> Option<usize> {
        Some(1)
    }
}

#[test]
fn dropping_an_epoch_ends_its_threads_and_reads_no_further() {
    let folder = Folder::new();
    let source = Arc::new(Counted { num_read: AtomicUsize::new(0), panics_at: None });
    let loader =
        Loader::new(Arc::clone(&source) as Arc<dyn RowSource>, folder.tokenizer(), None, config())
            .unwrap();
    let mut epoch = loader.epoch(0, 0);
    for _ in 0..5 {
        epoch.next().unwrap().unwrap();
    }
    drop(epoch);
    // Five batches taken and at most three ahead of the last request, four rows each.
    let num_read = source.num_read.load(Ordering::Relaxed);
    assert!(num_read <= (4 + 3) * 4);
    drop(loader);
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn a_panic_becomes_an_error_that_names_the_row() {
    let folder = Folder::new();
    for num_workers in [0, 3] {
        let source = Arc::new(Counted { num_read: AtomicUsize::new(0), panics_at: Some(9) });
        let config = with(config(), |c| {
            c.shuffle = false;
            c.num_workers = num_workers;
        });
        let loader = Loader::new(source, folder.tokenizer(), None, config).unwrap();
        let mut epoch = loader.epoch(0, 0);
        assert!(epoch.next().unwrap().is_ok() && epoch.next().unwrap().is_ok());
        match epoch.next().unwrap() {
            Err(DataError::WorkerPanic { location, message }) => {
                assert_eq!(location, "made-up:9");
                assert!(message.contains("out of luck"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        assert!(epoch.next().is_none());
    }
}

#[test]
fn images_are_spelled_by_the_first_token_that_the_tokenizer_has() {
    let folder = Folder::new();
    let open = |tokens: &[&str]| {
        let placeholders: Vec<_> =
            tokens.iter().map(|&token| ImagePlaceholder::new(token)).collect();
        ChatTokenizer::with_first_placeholder(folder.path(), &placeholders)
    };
    // Bytes and special tokens are single tokens here, words are not.
    let tokenizer = open(&["<|image_pad|>", "<unk>", "@"]).unwrap();
    assert_eq!(tokenizer.placeholder().token(), "<unk>");
    assert_eq!(tokenizer.image_token_id(), 0);
    let turns = [Turn::new(Role::User, "<image>?")];
    let (ids, starts) = tokenizer.encode_prompt(&turns, 1, 3).unwrap();
    assert_eq!(ids[starts[0]..starts[0] + 3], [0, 0, 0]);
    let error = open(&["<|image_pad|>", "two"]).unwrap_err().to_string();
    assert!(error.contains("\"<|image_pad|>\" or \"two\" is not a single token"), "{error}");
}

#[test]
fn unusable_tokenizers_are_refused_and_another_template_changes_the_hash() {
    let folder = Folder::new();
    let error = |config| {
        write_tokenizer(folder.path(), config);
        ChatTokenizer::from_dir(folder.path()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(error(json!({ "chat_template": null })).contains("no chat template"));
    assert!(error(json!({ "chat_template": "{% if %}" })).contains("chat template cannot be used"));
    let doubling = "{% set x = x + x %}".repeat(60);
    let endless = json!({ "chat_template": format!("{{% set x = 'ab' %}}{doubling}") });
    assert!(error(endless).contains("too much work"));
    assert!(error(json!({ "eos_token": "</x>" })).contains("</x>"));
    let named = json!({ "chat_template": [{ "name": "tool", "template": "" },
                                          { "name": "default", "template": TEMPLATE }] });
    assert_eq!(error(named), "");
    let seed = folder.tokenizer();
    write_tokenizer(folder.path(), json!({ "chat_template": format!("{TEMPLATE} ") }));
    assert_ne!(folder.tokenizer().hash(), seed.hash());
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(ChatTokenizer::from_dir(folder.path()).is_err());
}

#[test]
fn a_template_with_a_generation_prompt_and_spaced_ends_is_followed() {
    let folder = Folder::new();
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} \
                    {{ eos_token }}\n{% endfor %}\
                    {% if add_generation_prompt %}[assistant] {% endif %}";
    write_tokenizer(folder.path(), json!({ "chat_template": template }));
    let tokenizer = folder.tokenizer();
    let turns = [
        Turn::new(Role::User, " q "),
        Turn::new(Role::Assistant, " one </s> "),
        Turn::new(Role::User, "r"),
        Turn::new(Role::Assistant, "é"),
    ];
    let row = Row { turns: turns.to_vec(), images: Vec::new() };
    let encoded = tokenizer.encode_row(&row, TOKENS_PER_IMAGE, 1000).unwrap();
    let text = |span: &std::ops::Range<usize>| tokenizer.decode(&encoded.input_ids[span.clone()]);
    let answers: Vec<_> = encoded.supervised.iter().map(text).collect();
    // After the answer the template's space, its end token and the one after that.
    assert!(answers[0].starts_with("one ") && answers[1].starts_with("é "), "{answers:?}");
    let ends = encoded.supervised.iter().map(|span| encoded.input_ids[span.end - 2]);
    assert!(ends.eq([tokenizer.eos_token_id(); 2]));
    let (ids, _) = tokenizer.encode_prompt(&turns[..1], 0, TOKENS_PER_IMAGE).unwrap();
    assert!(tokenizer.decode(&ids).ends_with("[assistant] "));
}

#[test]
fn a_loaded_row_is_what_its_batch_has() {
    let folder = mixed_rows();
    let loader = folder.loader(with(config(), |c| {
        c.batch_size = 1;
        c.shuffle = false;
        // Some rows are truncated.
        c.max_seq_len = 34;
    }));
    let (mut num_cut, mut num_rejected) = (0, 0);
    for (index, batch) in batches(&loader, 0, 0).into_iter().enumerate() {
        let row = match loader.load_row(index).unwrap() {
            Ok(row) => row,
            Err(rejected) => {
                assert_eq!(batch.rejected, [rejected]);
                num_rejected += 1;
                continue;
            }
        };
        let ids = &row.encoded.input_ids;
        assert_eq!(batch.input_ids, ids[..ids.len() - 1]);
        let mask = row.encoded.supervised_mask();
        let label = |at: usize| if mask[at] { ids[at] } else { IGNORE_INDEX };
        assert_eq!(batch.labels, (1..ids.len()).map(label).collect::<Vec<_>>());
        let pixels: Vec<u8> = row.images.iter().flat_map(|image| image.pixels.clone()).collect();
        match &batch.image_data {
            ImageData::Pixels(expected) => assert_eq!(*expected, pixels),
            _ => assert!(pixels.is_empty()),
        }
        assert!(row.images.iter().all(|image| (image.width, image.height) == (12, 9)));
        num_cut += usize::from(row.num_tokens > ids.len());
    }
    assert!(num_cut > 0 && num_rejected > 0, "{num_cut} and {num_rejected}");
}

#[test]
fn texts_of_ranges_join_to_the_text_of_all_tokens() {
    let folder = Folder::new();
    folder.write_rows(&[row("wörld?", "é 中", "")]);
    let loader = folder.loader(config());
    let ids = loader.load_row(0).unwrap().unwrap().encoded.input_ids;
    let tokenizer = folder.tokenizer();
    let text = tokenizer.decode_range(&ids, 0..ids.len());
    assert_eq!(text, "<s>user\nwörld?</s>\n<s>assistant\né 中</s>\n");
    for middle in [1, 5, ids.len() - 2] {
        let parts = [0..middle, middle..ids.len()].map(|part| tokenizer.decode_range(&ids, part));
        assert_eq!(parts.concat(), text);
    }
    assert_eq!(tokenizer.tokens(&ids[..3]), ["<s>", "u", "s"]);
}
