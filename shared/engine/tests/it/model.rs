//! Ids and vectors of the real model against the fixture; input: the 64 texts, output: equality of ids, bounds on cosines.

use engine::{ComputeError, EmbeddingModel, Input, InputError, Pooling, Precision, TokenIds, Truncate};

use crate::fixture::{cosine, fixture, load};

fn tokens(model: &EmbeddingModel) -> Vec<TokenIds> {
    let tokenize = |text: &str| model.tokenize(Input::Text(text), Truncate::End).unwrap();
    fixture().texts.iter().map(|case| tokenize(&case.text)).collect()
}

/// Smallest cosine over the fixture, all texts in one batch.
fn smallest_cosine(model: &EmbeddingModel) -> f64 {
    let vectors = model.embed(&tokens(model)).unwrap();
    assert_eq!(vectors.len(), 64);
    let cosines = fixture()
        .texts
        .iter()
        .zip(vectors.rows())
        .map(|(case, vector)| cosine(&case.vector(), vector))
        .collect::<Vec<_>>();
    cosines.into_iter().fold(1.0, f64::min)
}

#[test]
fn ids_are_those_of_the_reference_tokenizer() {
    let model = load(Precision::F32, 1);
    for (case, ids) in fixture().texts.iter().zip(tokens(&model)) {
        assert_eq!(ids.as_slice(), case.ids, "{:?}", case.text);
        // Raw ids give the same sequence, with and without the special tokens.
        for raw in [&case.ids[..], &case.ids[1..case.ids.len() - 1]] {
            if raw.is_empty() {
                continue;
            }
            let again = model.tokenize(Input::Tokens(raw), Truncate::None).unwrap();
            assert_eq!(again, ids, "{:?}", case.text);
        }
    }
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    // The bounds of the three precisions: f32 differs by rounding only, the others by what they drop.
    for (precision, bound) in [
        (Precision::F32, 0.999_99),
        (Precision::Bf16, 0.999),
        (Precision::Int8, 0.995),
    ] {
        for threads in [1, 3] {
            let smallest = smallest_cosine(&load(precision, threads));
            println!("{precision}, {threads} threads: smallest cosine {smallest:.7}");
            assert!(smallest >= bound, "{precision}: {smallest}");
        }
    }
}

#[test]
fn a_vector_does_not_depend_on_its_neighbours() {
    let model = load(Precision::F32, 2);
    let tokens = tokens(&model);
    let together = model.embed(&tokens).unwrap();
    for (ids, vector) in tokens.iter().zip(together.rows()) {
        let alone = model.embed(std::slice::from_ref(ids)).unwrap();
        let alone = alone.row(0).unwrap();
        assert!(alone.iter().zip(vector).all(|(a, b)| (a - b).abs() < 1e-5));
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
}

#[test]
fn info_tells_the_limits() {
    let fixture = fixture();
    let model = load(Precision::Int8, 1);
    let info = model.info();
    assert_eq!((info.family, info.dims), ("bert", fixture.dims));
    assert_eq!(info.max_tokens, fixture.max_tokens);
    assert_eq!((info.max_positions, info.vocab_size), (512, 30_522));
    assert_eq!((info.pooling, info.normalized), (Pooling::Mean, true));
    assert_eq!(info.parameters, 22_713_216);
    assert_eq!(info.precision, Precision::Int8);
    // The revision names the files, not the precision.
    assert_eq!(info.revision.len(), 16);
    assert_eq!(info.revision, load(Precision::F32, 1).info().revision);
}

#[test]
fn long_inputs_are_refused_or_cut_at_the_chosen_end() {
    let model = load(Precision::F32, 1);
    let text = "one two three four five ".repeat(100);
    let input = Input::Text(&text);
    assert_eq!(
        model.tokenize(input, Truncate::None),
        Err(InputError::TooLong { tokens: 502, max: 256 })
    );
    let start = model.tokenize(input, Truncate::Start).unwrap();
    let end = model.tokenize(input, Truncate::End).unwrap();
    for ids in [&start, &end] {
        assert_eq!(ids.len(), 256);
        assert_eq!((ids.as_slice()[0], ids.as_slice()[255]), (101, 102));
    }
    let words = model
        .tokenize(Input::Text("one two three four five"), Truncate::None)
        .unwrap();
    let words = &words.as_slice()[1..6];
    assert_eq!(&end.as_slice()[1..6], words);
    assert_eq!(&start.as_slice()[250..255], words);
    assert_eq!(start.as_slice()[1], words[1]);
}

#[test]
fn wrong_inputs_are_refused() {
    let model = load(Precision::F32, 1);
    let none = Truncate::None;
    for input in [Input::Text(""), Input::Tokens(&[])] {
        assert_eq!(model.tokenize(input, none), Err(InputError::Empty));
    }
    let outside = InputError::TokenOutOfRange {
        id: 30_522,
        vocab: 30_522,
    };
    assert_eq!(model.tokenize(Input::Tokens(&[7, 30_522]), none), Err(outside.clone()));
    let batch = |ids: Vec<u32>| model.embed(&[TokenIds::new(vec![101, 102]), TokenIds::new(ids)]);
    for (ids, expected) in [
        (vec![30_522], outside),
        (vec![], InputError::Empty),
        (vec![1; 513], InputError::TooLong { tokens: 513, max: 512 }),
    ] {
        match batch(ids) {
            Err(ComputeError::Sequence { index: 1, source }) => assert_eq!(source, expected),
            other => panic!("{other:?}"),
        }
    }
    assert!(batch(vec![1; 512]).is_ok());
    assert_eq!(model.embed(&[]).unwrap().len(), 0);
}

#[test]
fn threads_may_share_a_model() {
    let model = load(Precision::F32, 2);
    let tokens = tokens(&model);
    let expected = model.embed(&tokens[..8]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (model, tokens, expected) = (model.clone(), &tokens, &expected);
            scope.spawn(move || {
                for _ in 0..3 {
                    assert_eq!(&model.embed(&tokens[..8]).unwrap(), expected);
                    assert!(model.tokenize(Input::Text("meanwhile"), Truncate::None).is_ok());
                }
            });
        }
    });
}
