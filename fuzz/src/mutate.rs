//! Makes inputs from seeds. An input is a function of the seeds, the number of the run's seed and
//! the number of the execution, so that a finding can be made again from these numbers.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Longest input.
const MAX_BYTES: usize = 256 << 10;

/// Numbers at the edges of ranges.
const NUMBERS: [i64; 16] = [
    0,
    1,
    -1,
    2,
    7,
    8,
    64,
    127,
    255,
    256,
    65_535,
    1 << 31,
    i32::MAX as i64,
    1 << 40,
    i64::MAX,
    i64::MIN,
];

/// Input number `execution` of a run with the number `seed`.
///
/// # Panics
/// There are no seeds.
pub fn input(seeds: &[Vec<u8>], dictionary: &[&str], seed: u64, execution: u64) -> Vec<u8> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&execution.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut bytes = seeds.choose(&mut rng).expect("a target has seeds").clone();
    if rng.random_ratio(1, 2)
        && let Ok(mut value) = serde_json::from_slice::<Value>(&bytes)
    {
        for _ in 0..rng.random_range(1..=3) {
            mutate_json(&mut value, dictionary, &mut rng);
        }
        return value.to_string().into_bytes();
    }
    for _ in 0..1 << rng.random_range(0..5) {
        mutate_bytes(&mut bytes, seeds, dictionary, &mut rng);
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

fn mutate_bytes(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dictionary: &[&str], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=bytes.len());
    let rest = bytes.len() - at;
    let some = |rng: &mut ChaCha8Rng, most: usize| match rng.random_ratio(3, 4) {
        true => rng.random_range(0..=most.min(16)),
        false => rng.random_range(0..=most),
    };
    match rng.random_range(0..11) {
        0 if rest > 0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if rest > 0 => {
            bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, rng.random()].choose(rng).unwrap_or(&0)
        }
        2 => write_number(&mut bytes[at..], rng),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..at + some(rng, rest))),
        5 => {
            let part = bytes[at..at + some(rng, rest)].to_vec();
            let times = *[1, 1, 2, 16, 1000].choose(rng).unwrap_or(&1);
            let times = times.min(1 + MAX_BYTES / part.len().max(1));
            bytes.splice(at..at, part.repeat(times));
        }
        6 => {
            let token = dictionary.choose(rng).unwrap_or(&"").as_bytes();
            let times = *[1, 1, 1, 3, 200, 20_000].choose(rng).unwrap_or(&1);
            bytes.splice(at..at, token.repeat(times.min(1 + MAX_BYTES / token.len().max(1))));
        }
        7 => {
            let token = dictionary.choose(rng).unwrap_or(&"").as_bytes();
            let length = token.len().min(rest);
            bytes[at..at + length].copy_from_slice(&token[..length]);
        }
        8 => {
            let other = seeds.choose(rng).map_or(&[][..], Vec::as_slice);
            let from = rng.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        9 => write_digits(bytes, at, rng),
        _ => {
            let length = some(rng, 64);
            let random: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            bytes.splice(at..(at + length).min(bytes.len()), random);
        }
    }
}

/// Writes an integer of 2, 4 or 8 bytes in either byte order, or changes one by a little.
fn write_number(bytes: &mut [u8], rng: &mut ChaCha8Rng) {
    let width = *[2, 4, 8].choose(rng).unwrap_or(&4);
    let Some(place) = bytes.get_mut(..width) else { return };
    let mut number = [0; 8];
    number[..width].copy_from_slice(place);
    let number = match rng.random_ratio(1, 2) {
        true => i64::from_le_bytes(number).wrapping_add(rng.random_range(-16..=16)),
        false => *NUMBERS.choose(rng).unwrap_or(&0),
    };
    place.copy_from_slice(&number.to_le_bytes()[..width]);
    if rng.random_ratio(1, 4) {
        place.reverse();
    }
}

/// Replaces the decimal digits at or behind `at`.
fn write_digits(bytes: &mut Vec<u8>, at: usize, rng: &mut ChaCha8Rng) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else { return };
    let start = at + start;
    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = NUMBERS.choose(rng).unwrap_or(&0).to_string();
    bytes.splice(start..start + length, number.into_bytes());
}

/// Changes one value somewhere in a JSON tree.
fn mutate_json(value: &mut Value, dictionary: &[&str], rng: &mut ChaCha8Rng) {
    let goes_deeper = rng.random_ratio(7, 8);
    match value {
        Value::Object(object) if goes_deeper && !object.is_empty() => {
            let key = object.keys().nth(rng.random_range(0..object.len())).cloned();
            let key = key.unwrap_or_default();
            match rng.random_range(0..12) {
                0 => drop(object.remove(&key)),
                1 => {
                    let moved = object.remove(&key).unwrap_or_default();
                    object.insert((*dictionary.choose(rng).unwrap_or(&"x")).to_owned(), moved);
                }
                2 => {
                    let name = (*dictionary.choose(rng).unwrap_or(&"x")).to_owned();
                    object.insert(name, new_value(&Value::Null, dictionary, rng));
                }
                _ => mutate_json(&mut object[&key], dictionary, rng),
            }
        }
        Value::Array(list) if goes_deeper && !list.is_empty() => {
            let index = rng.random_range(0..list.len());
            match rng.random_range(0..10) {
                0 => drop(list.remove(index)),
                1 => {
                    let copy = list[index].clone();
                    let times = *[1, 2, 300].choose(rng).unwrap_or(&1);
                    list.extend(std::iter::repeat_n(copy, times));
                }
                _ => mutate_json(&mut list[index], dictionary, rng),
            }
        }
        _ => *value = new_value(value, dictionary, rng),
    }
}

fn new_value(old: &Value, dictionary: &[&str], rng: &mut ChaCha8Rng) -> Value {
    let number = *NUMBERS.choose(rng).unwrap_or(&0);
    let word = *dictionary.choose(rng).unwrap_or(&"x");
    match rng.random_range(0..14) {
        0 => Value::Null,
        1 => json!(rng.random::<bool>()),
        2..=4 => json!(number),
        5 => json!(old.as_i64().unwrap_or(1).wrapping_add(rng.random_range(-2..=2))),
        6 => json!(*[0.0, -0.5, 1e308, 1e-320, 0.1].choose(rng).unwrap_or(&0.0)),
        7 => json!(word),
        8 => json!(word.repeat(*[1, 2, 3000].choose(rng).unwrap_or(&1))),
        9 => json!([]),
        10 => json!([old]),
        11 => Value::Object(Map::from_iter([(word.to_owned(), old.clone())])),
        12 => json!(u64::MAX),
        _ => json!(number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_function_of_its_numbers_and_has_a_bounded_length() {
        let seeds = [br#"{"a": [1, 2, {"b": "text"}]}"#.to_vec(), vec![7; 300]];
        let make = |execution| input(&seeds, &["[", "\"x\": 1"], 3, execution);
        let inputs: Vec<Vec<u8>> = (0..2000).map(make).collect();
        assert_eq!(inputs[17], make(17));
        assert!(inputs.iter().all(|input| input.len() <= MAX_BYTES));
        let changed = inputs.iter().filter(|input| !seeds.contains(input)).count();
        assert!(changed > 1800, "{changed} of 2000 inputs differ from their seeds");
    }
}
