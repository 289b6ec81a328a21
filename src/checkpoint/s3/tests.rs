use object_store::ObjectStoreExt;
use uuid::Uuid;

use super::*;

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];

fn map(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

fn configured(variables: &[(&str, &str)], own: &[(&str, &str)]) -> Result<Bucket> {
    Bucket::configured("lake", settings(map(&[&KEYS[..], variables].concat()).into_iter(), &map(own)))
}

#[test]
fn settings_that_cannot_work_are_told_before_anything_is_asked() {
    for (variables, own, parts) in [
        (&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")][..], &[][..], ["http is not allowed", "AWS_ALLOW_HTTP=true"]),
        (&[("AWS_ENDPOINT_URL", "127.0.0.1:9000")], &[], ["has no scheme", "begins with https://"]),
        (
            &[],
            &[("s3.endpoint", "https://me:s3cret@h:1/x")],
            ["has a user", "the endpoint is \"https://me:***@h:1/x\""],
        ),
        (&[], &[("s3.endpoint", "localhost")], ["has no scheme", "the endpoint is \"localhost\""]),
        (&[("AWS_CA_BUNDLE", "/nowhere/ca.pem")], &[], ["no certificates to trust", "/nowhere/ca.pem: No such file"]),
        (
            &[("AWS_SECRET_ACCESS_KEY", "")],
            &[],
            ["do not fit", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together"],
        ),
        (&[("AWS_ALLOW_HTTP", "perhaps")], &[], ["do not fit", "perhaps"]),
    ] {
        let error = configured(variables, own).unwrap_err();
        let shown = error.to_string();
        assert!(parts.iter().all(|part| shown.contains(part)) && shown.contains("bucket \"lake\""), "{shown}");
        assert!(error.fault() == crate::Fault::User && !shown.contains("s3cret"), "{shown}");
    }
    let not_pem = tempfile::NamedTempFile::new().unwrap();
    let error = configured(&[], &[("s3.ca_file", not_pem.path().to_str().unwrap())]).unwrap_err().to_string();
    assert!(error.contains("it holds none"), "{error}");
}

#[test]
fn options_of_a_table_win_and_what_is_empty_is_not_set() {
    let variables = [("AWS_SESSION_TOKEN", "t"), ("AWS_REGION", "a"), ("AWS_ENDPOINT_URL", ""), ("HOME", "/")];
    let found = settings(
        map(&variables).into_iter(),
        &map(&[("s3.region", "b"), ("compression", "zstd"), ("s3.endpoint", "")]),
    );
    assert_eq!(found, map(&[("aws_session_token", "t"), ("aws_region", "b")]));
    // A token is of the key that it came with.
    let found = settings(map(&variables).into_iter(), &map(&[("s3.access_key_id", "k")]));
    assert_eq!(found, map(&[("aws_access_key_id", "k"), ("aws_region", "a")]));
}

#[test]
fn the_host_has_the_bucket_where_it_is_asked_for() {
    assert_eq!(hosted("https://s3.example.com:1", "lake"), "https://lake.s3.example.com:1");
    assert_eq!(hosted("https://lake.s3.example.com", "lake"), "https://lake.s3.example.com");
}

#[test]
fn clients_that_differ_have_names_that_differ() {
    let [none, one, two] =
        ["", "https://a", "https://b"].map(|endpoint| distinction(&map(&[("s3.endpoint", endpoint)])));
    assert!(none.is_empty() && one != two && one.len() == 13, "{none} {one} {two}");
}

#[test]
fn parts_are_of_equal_size_but_for_the_last() {
    for lengths in
        [&[PART_BYTES * 3 + 5][..], &[1, PART_BYTES, PART_BYTES * 2, 7], &[PART_BYTES], &[PART_BYTES - 1, 1, 1]]
    {
        let chunks: Vec<Bytes> = (0..).zip(lengths).map(|(n, length)| Bytes::from(vec![n; *length])).collect();
        let whole = chunks.concat();
        let parts = parts(&chunks.into_iter().collect());
        assert!(parts[..parts.len() - 1].iter().all(|part| part.len() == PART_BYTES), "{lengths:?}");
        assert!(!parts.last().unwrap().is_empty() && parts.concat() == whole, "{lengths:?}");
    }
}

#[test]
fn nothing_secret_is_printed() {
    let bucket = configured(&[("AWS_SESSION_TOKEN", "t0ken")], &[]).unwrap();
    let shown = format!("{bucket:?} {bucket}");
    assert!(!shown.contains("s3cret") && !shown.contains("t0ken") && shown.contains("lake"), "{shown}");
}

fn of_environment() -> (Arc<Bucket>, Path) {
    let bucket = std::env::var("S3_BUCKET").expect("S3_BUCKET: run this through `make test`");
    (Bucket::open(&bucket, &BTreeMap::new()).unwrap(), Path::from(format!("unit-{}", Uuid::new_v4())))
}

#[tokio::test]
#[ignore = "needs S3: make test"]
async fn a_large_object_goes_in_parts_and_comes_back_whole() {
    let (bucket, folder) = of_environment();
    let large: Vec<u8> = (0..PART_BYTES * 2 + 99).map(|n| (n / 999) as u8).collect();
    let to = folder.clone().join("large");
    for _ in 0..2 {
        let put = bucket.put(&to, large.clone().into()).await.unwrap();
        // The tag of an object in parts ends with their number.
        assert!(put.e_tag.unwrap().trim_matches('"').ends_with("-3"));
        assert!(bucket.get(&to).await.unwrap().bytes().await.unwrap() == large);
    }
    // If absent, in one piece: the condition is asked with all of it.
    let once = folder.join("once");
    bucket.put_opts(&once, large.clone().into(), PutMode::Create.into()).await.unwrap();
    let error = bucket.put_opts(&once, "other".into(), PutMode::Create.into()).await.unwrap_err();
    assert!(matches!(error, object_store::Error::AlreadyExists { .. }), "{error}");
    assert!(bucket.get(&once).await.unwrap().bytes().await.unwrap() == large);
}

#[tokio::test]
#[ignore = "needs S3: make test"]
async fn an_upload_that_is_dropped_midway_is_not_to_be_seen() {
    let (bucket, folder) = of_environment();
    let to = folder.clone().join("large");
    let payload = PutPayload::from(vec![7; PART_BYTES * 3]);
    let midway = tokio::time::timeout(
        Duration::from_millis(5),
        bucket.put_opts(&to, payload.clone(), PutMode::Overwrite.into()),
    );
    if midway.await.is_err() {
        let listed: Vec<_> = bucket.list(Some(&folder)).try_collect().await.unwrap();
        assert!(listed.is_empty() && bucket.head(&to).await.is_err());
    }
    bucket.put(&to, payload).await.unwrap();
    assert_eq!(bucket.head(&to).await.unwrap().size, PART_BYTES as u64 * 3);
}
