use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::Arch;
use crate::{Model, synthetic};

/// A small valid file with a value of every kind and two tensors.
fn sample(version: u32) -> Writer {
    let mut writer = Writer::with_version(version);
    writer
        .set("u8", Value::U8(200))
        .set("i8", Value::I8(-100))
        .set("u16", 60_000_u16)
        .set("i16", Value::I16(-30_000))
        .set("u32", 4_000_000_000_u32)
        .set("i32", -2_000_000_000)
        .set("f32", 1.5_f32)
        .set("bool", true)
        .set("string", "grüße")
        .set("u64", Value::U64(u64::MAX))
        .set("i64", Value::I64(i64::MIN))
        .set("f64", Value::F64(-0.1))
        .set("strings", vec!["a".to_owned(), String::new()])
        .set("f32s", vec![0.5_f32, -2.0])
        .set("i32s", vec![1, -1, 7])
        .set("u8s", Value::Array(Array::U8(vec![1, 2, 3])))
        .set("i8s", Value::Array(Array::I8(vec![-1])))
        .set("u16s", Value::Array(Array::U16(vec![65535])))
        .set("i16s", Value::Array(Array::I16(vec![-32768, 3])))
        .set("u32s", vec![u32::MAX])
        .set("u64s", Value::Array(Array::U64(vec![1 << 40])))
        .set("i64s", Value::Array(Array::I64(vec![-1])))
        .set("f64s", Value::Array(Array::F64(vec![1e300])))
        .set("bools", Value::Array(Array::Bool(vec![true, false])))
        .set("empty", Value::Array(Array::Array(Vec::new())))
        .set(
            "nested",
            Value::Array(Array::Array(vec![Array::U8(vec![9]), Array::String(Vec::new())])),
        );
    let (f32s, q8) = (GgmlType::from_name("F32").unwrap(), GgmlType::from_name("Q8_0").unwrap());
    writer.tensor("vector", &[3], f32s, (0..12).collect());
    writer.tensor("matrix", &[64, 2], q8, vec![7; 4 * 34]);
    writer
}

#[test]
fn what_is_written_is_read() {
    for version in [2, 3] {
        let written = sample(version);
        let expected: Vec<(String, Value)> = written.metadata().to_vec();
        let gguf = Gguf::from_bytes(written.finish()).unwrap();
        assert_eq!(gguf.version(), version);
        assert_eq!(gguf.keys().count(), expected.len());
        for (key, value) in expected {
            assert_eq!(gguf.metadata(&key), Some(&value), "{key}");
        }
        let vector = gguf.tensor("vector").unwrap();
        assert_eq!((vector.dims.as_slice(), vector.ggml_type.name), (&[3][..], "F32"));
        assert_eq!(gguf.data(vector), (0..12).collect::<Vec<u8>>());
        let matrix = gguf.tensor("matrix").unwrap();
        assert_eq!((matrix.dims.as_slice(), matrix.ggml_type.name), (&[64, 2][..], "Q8_0"));
        assert_eq!(gguf.data(matrix), [7; 4 * 34]);
    }
}

#[test]
fn getters_convert_integers_and_name_what_they_do_not_take() {
    let gguf = Gguf::from_bytes(sample(3).finish()).unwrap();
    assert_eq!(gguf.unsigned("u8").unwrap(), Some(200));
    assert_eq!(gguf.unsigned("absent").unwrap(), None);
    assert_eq!(gguf.integers("u16s").unwrap(), Some(vec![65535]));
    assert_eq!(gguf.float("f64").unwrap(), Some(-0.1));
    assert_eq!(gguf.strings("strings").unwrap().unwrap().len(), 2);
    for (error, expected) in [
        (gguf.unsigned("i8").unwrap_err(), "\"i8\" is an i8, and an integer from 0 to"),
        (gguf.unsigned("u64").unwrap_err(), "\"u64\" is a u64, and an integer from 0 to"),
        (gguf.integers("i32s").unwrap_err(), "\"i32s\" is an array, and an array of integers"),
        (gguf.string("u8").unwrap_err(), "\"u8\" is a u8, and a string is needed"),
        (gguf.boolean("u8").unwrap_err(), "\"u8\" is a u8, and a bool is needed"),
        (gguf.floats("strings").unwrap_err(), "an array of f32 is needed"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Header fields, one after the other.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }
    fn u32(mut self, x: u32) -> Raw {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn u64(mut self, x: u64) -> Raw {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn bytes(mut self, x: &[u8]) -> Raw {
        self.0.extend(x);
        self
    }
    fn string(self, x: &str) -> Raw {
        self.u64(x.len() as u64).bytes(x.as_bytes())
    }
    fn tensor(mut self, name: &str, dims: &[u64], ggml_type: u32, offset: u64) -> Raw {
        self = self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            self = self.u64(dim);
        }
        self.u32(ggml_type).u64(offset)
    }
    /// Pads to the default alignment and adds data.
    fn data(mut self, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self.0
    }
}

const U32: u32 = Kind::U32 as u32;
const STRING: u32 = Kind::String as u32;
const ARRAY: u32 = Kind::Array as u32;

#[track_caller]
fn refused(bytes: Vec<u8>, expected: &str) {
    let error = Gguf::from_bytes(bytes).expect_err(expected).to_string();
    assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
}

#[test]
fn headers_that_lie_are_refused() {
    let key = |name: &str| Raw::header(0, 1).string(name);
    let huge = u64::MAX;
    for (raw, expected) in [
        (Raw::default(), "magic number at byte 0 needs 4 bytes, and 0 are left"),
        (Raw(b"GGML".to_vec()).u32(3), "it starts with \"GGML\""),
        (Raw(b"GGUF".to_vec()).u32(1), "GGUF version 1"),
        (Raw(b"GGUF".to_vec()).u32(0), "GGUF version 0"),
        (Raw(b"GGUF".to_vec()).u32(4), "GGUF version 4"),
        (Raw(b"GGUF".to_vec()).u32(3_u32.swap_bytes()), "big-endian"),
        (Raw::header(huge, 0), "the number of tensors (18446744073709551615 items)"),
        (Raw::header(0, huge), "the number of metadata keys (18446744073709551615 items)"),
        (Raw::header(0, 2).bytes(&[0; 20]), "the number of metadata keys (2 items)"),
        (Raw::header(0, 1).u64(huge).bytes(&[0; 9]), "metadata key 0 at byte 32"),
        (Raw::header(0, 1).u64(0).bytes(&[0; 9]), "keys have 1 to 65535 bytes, this one 0"),
        (key(&"k".repeat(65536)).u32(U32).u32(0), "keys have 1 to 65535 bytes, this one 65536"),
        (Raw::header(0, 1).u64(2).bytes(b"\xff\xfe").u32(U32).u32(0), "is not UTF-8"),
        (key("k").u32(13).u32(0), "metadata types go from 0 to 12, and this one is 13"),
        (key("k").u32(Kind::Bool as u32).bytes(&[2]), "a bool is 0 or 1, and this one is 2"),
        (key("k").u32(STRING).u64(huge), "k at byte 45 needs 18446744073709551615 bytes"),
        (key("k").u32(STRING).u64(1).bytes(b"\x80"), "k at byte 45 is not UTF-8"),
        (key("k").u32(ARRAY).u32(U32).u64(huge), "k (18446744073709551615 items)"),
        (key("k").u32(ARRAY).u32(U32).u64(1 << 62), "k (4611686018427387904 items)"),
        (key("k").u32(ARRAY).u32(STRING).u64(1 << 32), "k (4294967296 items)"),
        (key("k").u32(ARRAY).u32(99).u64(0), "metadata types go from 0 to 12"),
        (nested(9), "arrays are nested more than 8 deep"),
        (nested(100_000), "arrays are nested more than 8 deep"),
        (twice("k"), "metadata key \"k\" occurs twice"),
        (key("general.alignment").u32(U32).u32(0), "0 is not a power of two"),
        (key("general.alignment").u32(U32).u32(48), "48 is not a power of two"),
        (key("general.alignment").u32(STRING).string("32"), "is a string, and a u32 is needed"),
    ] {
        refused(raw.0, expected);
    }
}

/// Arrays of one array each, `depth` of them.
fn nested(depth: usize) -> Raw {
    let mut raw = Raw::header(0, 1).string("k").u32(ARRAY);
    for _ in 1..depth {
        raw = raw.u32(ARRAY).u64(1);
    }
    raw.u32(U32).u64(0)
}

fn twice(key: &str) -> Raw {
    Raw::header(0, 2).string(key).u32(U32).u32(1).string(key).u32(U32).u32(1)
}

#[test]
fn tensors_that_lie_are_refused() {
    let one = |dims: &[u64], ggml_type, offset| {
        Raw::header(1, 0).tensor("t", dims, ggml_type, offset).data(64)
    };
    let two = |first: (&str, u64), second: (&str, u64)| {
        let raw = Raw::header(2, 0).tensor(first.0, &[12], 0, first.1);
        raw.tensor(second.0, &[12], 0, second.1).data(128)
    };
    for (bytes, expected) in [
        (one(&[], 0, 0), "tensors have 1 to 4 dimensions, this one 0"),
        (one(&[1; 5], 0, 0), "tensors have 1 to 4 dimensions, this one 5"),
        (one(&[0], 0, 0), "its extents [0] contain a zero"),
        (one(&[4, 0], 0, 0), "its extents [4, 0] contain a zero"),
        (one(&[1 << 32, 1 << 32], 0, 0), "overflow"),
        (one(&[u64::MAX], 0, 0), "overflow"),
        (one(&[32, u64::MAX / 32], 8, 0), "overflow"),
        (one(&[33], 2, 0), "its rows have 33 elements, and Q4_0 stores whole blocks of 32"),
        (one(&[1], 77, 0), "tensor \"t\" has the unknown ggml type 77"),
        (one(&[1], 4, 0), "its type Q4_2 was removed from ggml"),
        (one(&[17], 0, 0), "takes bytes 0..68 of the file's data, which has 64 bytes"),
        (one(&[1], 0, 64), "takes bytes 64..68 of the file's data, which has 64 bytes"),
        (one(&[1], 0, u64::MAX - 31), "of the file's data, which has 64 bytes"),
        (one(&[1], 0, 16), "starts at byte 16, not at a multiple of the alignment 32"),
        (two(("a", 0), ("a", 64)), "tensor \"a\" occurs twice"),
        (two(("a", 0), ("b", 0)), "\"a\" and \"b\" overlap"),
        (two(("b", 32), ("a", 0)), "\"a\" and \"b\" overlap: \"b\" starts at byte 32, before 48"),
        (Raw::header(1, 0).tensor("", &[1], 0, 0).data(64), "tensor 0 has no name"),
        (Raw::header(1, 0).tensor("t", &[1], 0, 0).0, "of the file's data, which has 0 bytes"),
    ] {
        refused(bytes, expected);
    }
    Gguf::from_bytes(two(("b", 64), ("a", 0))).expect("tensors may lie in any order");
}

#[test]
fn an_alignment_past_the_file_leaves_no_data() {
    let raw = Raw::header(1, 1).string("general.alignment").u32(U32).u32(1 << 31);
    refused(raw.tensor("t", &[1], 0, 0).data(64), "which has 0 bytes");
}

#[test]
fn every_truncation_is_an_error() {
    for bytes in [sample(3).finish(), tiny()] {
        for len in 0..bytes.len() {
            assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "{len} of {}", bytes.len());
        }
    }
}

#[test]
fn no_flipped_byte_panics() {
    let bytes = tiny();
    let data = data_start(&bytes);
    for at in 0..data {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            // An error, or a model that differs in what cannot be checked, such as its name.
            let _ = Model::from_gguf_bytes(bytes).map(|model| model.shape());
        }
    }
}

/// Where the header ends.
fn data_start(bytes: &[u8]) -> usize {
    let gguf = Gguf::from_bytes(bytes.to_vec()).unwrap();
    gguf.tensors().map(|tensor| tensor.bytes.start).min().unwrap()
}

/// The smallest model: one layer, few tokens.
fn tiny() -> Vec<u8> {
    let spec = synthetic::Spec {
        layers: 1,
        hidden: 4,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 2,
        rope_dims: 2,
        ffn: 4,
        vocab: 8,
        ..synthetic::Spec::tiny(Arch::Qwen3)
    };
    synthetic::gguf(&spec, 1)
}

// ---- split files

/// Part `no` of `count`, with one tensor of its own.
fn part(no: u16, count: u16, tensor: &str) -> Vec<u8> {
    let mut writer = Writer::default();
    if no == 0 {
        writer.set("general.architecture", "llama").set("split.tensors.count", 3);
    }
    writer.set("split.no", no).set("split.count", count);
    let f32s = GgmlType::from_name("F32").unwrap();
    writer.tensor(tensor, &[2], f32s, vec![no as u8; 8]);
    writer.finish()
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[(&str, Vec<u8>)]) -> Dir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
        Dir(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    #[track_caller]
    fn refused(&self, name: &str, expected: &str) {
        let error = Gguf::open(&self.path(name)).expect_err(expected).to_string();
        assert!(error.contains(expected), "wanted {expected:?}, got {error:?}");
    }
}

const PARTS: [&str; 3] =
    ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

#[test]
fn the_first_part_opens_all() {
    let files = [part(0, 3, "a"), part(1, 3, "b"), part(2, 3, "c")];
    let dir = Dir::new(&[0, 1, 2].map(|i| (PARTS[i], files[i].clone())));
    let gguf = Gguf::open(&dir.path(PARTS[0])).unwrap();
    assert_eq!((gguf.parts(), gguf.tensors().count()), (3, 3));
    for (name, byte) in [("a", 0), ("b", 1), ("c", 2)] {
        assert_eq!(gguf.data(gguf.tensor(name).unwrap()), [byte; 8], "{name}");
    }
    dir.refused(PARTS[1], "this is part 2 of 3 of a split model; give its first part");
    dir.refused(PARTS[2], PARTS[0]);
    refused(files[0].clone(), "split over 3 files");

    fs::remove_file(dir.path(PARTS[2])).unwrap();
    dir.refused(PARTS[0], "part 3 of 3 is missing");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let first = || part(0, 3, "a");
    let last = || part(2, 3, "c");
    for (second, third, expected) in [
        (part(2, 3, "b"), last(), "says it is part 3 of 3; part 2 of 3 is needed"),
        (part(1, 4, "b"), last(), "says it is part 2 of 4; part 2 of 3 is needed"),
        (sample(3).finish(), last(), "says it is part 1 of 1; part 2 of 3 is needed"),
        (part(1, 3, "a"), last(), "tensor \"a\" occurs twice"),
        (part(3, 3, "b"), last(), "3 of 3 is no part of a model"),
        (b"GGUF".to_vec(), last(), "00002-of-00003.gguf: the file ends too early"),
    ] {
        Dir::new(&[(PARTS[0], first()), (PARTS[1], second), (PARTS[2], third)])
            .refused(PARTS[0], expected);
    }
    Dir::new(&[("model.gguf", first())]).refused("model.gguf", "must end in -00001-of-00003.gguf");
    let mut none = Writer::default();
    none.set("split.count", 2_u32);
    refused(none.finish(), "\"split.no\" is missing");
}

#[test]
fn a_part_with_a_tensor_more_is_refused() {
    let mut more = Writer::default();
    more.set("split.no", 1_u16).set("split.count", 2_u16);
    let dir = Dir::new(&[
        ("m-00001-of-00002.gguf", part(0, 2, "a")),
        ("m-00002-of-00002.gguf", more.finish()),
    ]);
    dir.refused("m-00001-of-00002.gguf", "the 2 parts hold 1 tensors, and split.tensors.count");
}

#[test]
fn files_that_cannot_be_opened_are_named() {
    let dir = Dir::new(&[("empty.gguf", Vec::new())]);
    dir.refused("absent.gguf", "absent.gguf");
    dir.refused("empty.gguf", "the file ends too early");
    dir.refused("", "not a regular file");
}
