use bytes::Bytes;

use super::*;
use crate::fleetspeak::server::{
    Broadcast, ClientResourceUsageRecord, ServerConfig, ServiceConfig,
};
use crate::fleetspeak::{
    ClientServiceConfig, ContactData, DieRequest, EmptyMessage, Label, MessageErrorData,
    RestartServiceRequest, components, daemonservice, grpcservice, message,
};
use crate::{Any, Duration, pack};

fn services() -> ServerConfig {
    let config = grpcservice::Config {
        target: "localhost:11111".into(),
        insecure: true,
        ..Default::default()
    };
    ServerConfig {
        services: vec![ServiceConfig {
            name: "GRR".into(),
            factory: "GRPC".into(),
            max_parallelism: 100,
            config: Some(pack(&config)),
        }],
        broadcast_poll_time: Some(Duration {
            seconds: 1,
            nanos: 0,
        }),
    }
}

fn name(text: &str) -> Result<String, TextError> {
    parse::<RestartServiceRequest>(text).map(|message| message.name)
}

fn argv(text: &str) -> Vec<String> {
    parse::<daemonservice::Config>(text).unwrap().argv
}

#[track_caller]
fn refused<M: Message + Name + Default + fmt::Debug>(
    text: &str,
    line: usize,
    column: usize,
    message: &str,
) {
    let error = parse::<M>(text).unwrap_err();
    assert_eq!((error.line(), error.column()), (line, column), "{error}");
    assert!(error.message().contains(message), "{error}");
}

#[test]
fn p_210_messages_may_use_braces_or_angle_brackets_with_or_without_colon() {
    for (start, end) in [
        ("{", "}"),
        (": {", "}"),
        (":{", "}"),
        ("<", ">"),
        (": <", ">"),
        (":<", ">"),
    ] {
        let text = format!(
            "services {start} name: 'GRR' factory: 'GRPC' max_parallelism: 100 config {start} \
             [type.googleapis.com/fleetspeak.grpcservice.Config] {start} target: 'localhost:11111' insecure: true \
             {end} {end} {end} broadcast_poll_time {start} seconds: 1 {end}"
        );
        assert_eq!(parse(&text), Ok(services()), "{text}");
    }
}

#[test]
fn empty_texts_and_texts_of_comments_give_empty_messages() {
    for text in [
        "",
        "\n",
        "# No services yet.",
        "# No services yet.\r\n# services { } \n",
    ] {
        assert_eq!(parse(text), Ok(ServerConfig::default()), "{text:?}");
    }
}

#[test]
fn commas_and_semicolons_may_follow_fields() {
    let text = "services { name: 'GRR', factory: 'GRPC'; max_parallelism: 100, config { \
                [type.googleapis.com/fleetspeak.grpcservice.Config] { target: 'localhost:11111', insecure: true; }; } \
                }, broadcast_poll_time { seconds: 1 };";
    assert_eq!(parse(text), Ok(services()));
}

#[test]
fn comments_may_stand_anywhere() {
    let text = "# {\nname # :\n: # '\n 'G' # adjacent\n 'RR' # end";
    assert_eq!(name(text).unwrap(), "GRR");
}

#[test]
fn repeated_fields_may_be_repetitions_or_lists() {
    for text in [
        "argv: 'a' argv: 'b' argv: 'c'",
        "argv: ['a', 'b', 'c']",
        "argv:['a','b'],argv:'c'",
        "argv: [] argv: ['a' , \"b\"] argv: ['c']",
    ] {
        assert_eq!(argv(text), ["a", "b", "c"], "{text}");
    }
    let text = "required_labels: [{ service_name: 'client' label: 'a' }, < label: 'b' >] required_labels {}";
    let labels = parse::<Broadcast>(text).unwrap().required_labels;
    let label = |service_name: &str, label: &str| Label {
        service_name: service_name.into(),
        label: label.into(),
    };
    assert_eq!(
        labels,
        [label("client", "a"), label("", "b"), label("", "")]
    );
}

#[test]
fn strings_have_two_quotes_and_may_be_adjacent() {
    assert_eq!(name(r#"name: "it's" ' "' "ok""#).unwrap(), "it's \"ok");
    assert_eq!(name("name: 'a'\n'b'\n\n\"c\"").unwrap(), "abc");
    assert_eq!(
        argv("argv: 'a' 'b' argv: ['c' \"d\", 'e']"),
        ["ab", "cd", "e"]
    );
}

#[test]
fn strings_know_all_escapes() {
    let text =
        r#"name: "\a\b\f\n\r\t\v\?\\\'\"|\0|\60|\101|\x7e|\xA|\X41|\u00e9\u20AC|\U0001F600""#;
    let expected = "\x07\x08\x0c\n\r\t\x0b?\\'\"|\0|0|A|~|\n|A|é€|😀";
    assert_eq!(name(text).unwrap(), expected);
    assert_eq!(name(r"name: '\303\251 \xe2\x82\xac é'").unwrap(), "é € é");
}

#[test]
fn bytes_need_not_be_text() {
    let error: MessageErrorData = parse(r#"message_id: "\000\377\xfe" error: "x""#).unwrap();
    assert_eq!(&error.message_id[..], b"\x00\xff\xfe");
    refused::<MessageErrorData>(r#"message_id: "" error: "\xff""#, 1, 23, "utf-8");
}

#[test]
fn expanded_any_may_have_colons_at_both_places() {
    let expected: ServiceConfig = ServiceConfig {
        config: Some(pack(&DieRequest { force: true })),
        ..Default::default()
    };
    for text in [
        "config { [type.googleapis.com/fleetspeak.DieRequest] { force: true } }",
        "config: { [type.googleapis.com/fleetspeak.DieRequest]: { force: true } }",
        "config:<[type.googleapis.com/fleetspeak.DieRequest]:<force:true>>",
        "config { [ type.googleapis.com / fleetspeak . DieRequest ] < force: 1 >; },",
    ] {
        assert_eq!(parse(text), Ok(expected.clone()), "{text}");
    }
}

#[test]
fn any_may_stay_unexpanded() {
    let config =
        parse::<ServiceConfig>(r#"config { type_url: "a.example/b.C" value: "\010\001" }"#)
            .unwrap();
    let expected = Any {
        type_url: "a.example/b.C".into(),
        value: Bytes::from_static(b"\x08\x01"),
    };
    assert_eq!(config.config, Some(expected));
}

#[test]
fn p_210_output_of_go_on_one_line_is_read() {
    for space in [" ", "  "] {
        let text = [
            r#"services:{name:"GRR""#,
            r#"factory:"GRPC""#,
            "max_parallelism:100",
            r#"config:{[type.googleapis.com/fleetspeak.grpcservice.Config]:{target:"localhost:11111""#,
            "insecure:true}}}",
            "broadcast_poll_time:{seconds:1}",
        ]
        .join(space);
        assert_eq!(parse(&text), Ok(services()), "{text}");
    }
}

#[test]
fn values_of_all_kinds_are_read() {
    let record: ClientResourceUsageRecord = parse(
        "pid: -7 process_terminated: true mean_user_cpu_rate: 1.5e2 max_user_cpu_rate: .5 mean_system_cpu_rate: 3 \
         max_system_cpu_rate: -inf mean_num_fds: 0x1F max_num_fds: 017",
    )
    .unwrap();
    let expected = ClientResourceUsageRecord {
        pid: -7,
        process_terminated: true,
        mean_user_cpu_rate: 150.0,
        max_user_cpu_rate: 0.5,
        mean_system_cpu_rate: 3.0,
        max_system_cpu_rate: f32::NEG_INFINITY,
        mean_num_fds: 31,
        max_num_fds: 15,
        ..Default::default()
    };
    assert_eq!(record, expected);

    for text in ["priority: HIGH", "priority: 2"] {
        let message: crate::fleetspeak::Message = parse(text).unwrap();
        assert_eq!(message.priority(), message::Priority::High);
    }

    let text = "AllowedMessages { key: 'GRR' value: 20 } AllowedMessages: [{ key: 'a' }]";
    let contact: ContactData = parse(text).unwrap();
    assert_eq!(
        contact.allowed_messages.into_iter().collect::<Vec<_>>(),
        [("GRR".into(), 20), ("a".into(), 0)]
    );
}

#[test]
fn p_211_unknown_fields_are_refused_at_their_place() {
    refused::<ServerConfig>("\nservices {\n  nam: 'x'\n}", 3, 3, "'nam' not found");
    refused::<ServerConfig>("services { [a.b] { } }", 1, 12, "'a.b' not found");
    refused::<components::Config>(
        "https_config { reserved: 1 }",
        1,
        16,
        "'reserved' not found",
    );
    refused::<ServiceConfig>(
        "config { [type.googleapis.com/a.B] {} }",
        1,
        10,
        "'a.B' not found",
    );
    refused::<ServiceConfig>(
        "config { [type.googleapis.com/fleetspeak.DieRequest] { x: 1 } }",
        1,
        56,
        "'x' not found",
    );
}

#[test]
fn values_that_do_not_fit_are_refused_at_their_place() {
    refused::<ServiceConfig>("max_parallelism: -1", 1, 18, "out of range");
    refused::<ServiceConfig>("max_parallelism: 4294967296", 1, 18, "out of range");
    refused::<ServiceConfig>("name: GRR", 1, 7, "expected a string");
    refused::<ServiceConfig>("name: 'ä' name: 'b'", 1, 17, "already set");
    refused::<crate::fleetspeak::Message>("priority: URGENT", 1, 11, "'URGENT'");
    refused::<EmptyMessage>(
        "[type.googleapis.com/fleetspeak.DieRequest] {}",
        1,
        1,
        "google.protobuf.Any",
    );
    refused::<components::FrontendConfig>(
        "mtls_config {} cleartext_xfcc_config {}",
        1,
        38,
        "already set",
    );
}

#[test]
fn malformed_texts_are_refused_at_their_place() {
    refused::<ServerConfig>("services {", 1, 11, "end of input");
    refused::<ServerConfig>("services { >", 1, 12, "'}'");
    refused::<ServerConfig>("services { name: 'a\n", 1, 20, "string");
    refused::<ServerConfig>("services { name: 'a", 1, 20, "end of input");
    refused::<ServerConfig>(r"services { name: '\q' }", 1, 19, "escape");
    refused::<ServerConfig>("}", 1, 1, "field name");
    refused::<ServerConfig>("services { } $", 1, 14, "invalid token");
    refused::<ServerConfig>("# ä\n\u{feff}services { }", 2, 1, "invalid token");
}

#[test]
fn s18_errors_do_not_quote_strings() {
    for text in [
        "key \"secret\"",
        "disable_streaming: 'secret'",
        "'secret'",
        "listen_address: 'a' 'b': 'secret'",
    ] {
        let error = parse::<components::HttpsConfig>(text).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("secret"),
            "{error:?}"
        );
    }
}

fn nested(levels: usize) -> ClientServiceConfig {
    let mut config = ClientServiceConfig::default();
    for _ in 0..levels {
        config = ClientServiceConfig {
            config: Some(pack(&config)),
            ..Default::default()
        };
    }
    config
}

#[test]
fn hostile_nesting_is_refused_on_a_small_stack() {
    let check = || {
        let deep = |n: usize| {
            let start = "config{[type.googleapis.com/fleetspeak.ClientServiceConfig]{".repeat(n);
            format!("{start}{}", "}}".repeat(n))
        };
        assert_eq!(parse(&deep(31)), Ok(nested(31)));
        refused::<ClientServiceConfig>(&deep(1000), 1, 1927, "deeper than 64");
        refused::<ClientServiceConfig>(&"config:<".repeat(100_000), 1, 520, "deeper than 64");
    };
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(check)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn deep_any_is_printed_in_a_form_that_can_be_read() {
    let config = nested(1000);
    assert_eq!(parse(&print(&config)), Ok(config));
}

#[test]
fn messages_are_printed_one_field_per_line() {
    let expected = r#"services {
  name: "GRR"
  factory: "GRPC"
  max_parallelism: 100
  config {
    [type.googleapis.com/fleetspeak.grpcservice.Config] {
      target: "localhost:11111"
      insecure: true
    }
  }
}
broadcast_poll_time {
  seconds: 1
}
"#;
    assert_eq!(print(&services()), expected);
}

#[test]
fn values_of_all_kinds_are_printed_in_a_form_that_can_be_read() {
    #[track_caller]
    fn round_trip<M: Message + Name + Default + PartialEq + fmt::Debug>(message: M, text: &str) {
        assert_eq!(print(&message), text);
        assert_eq!(parse(text), Ok(message));
    }

    round_trip(ServerConfig::default(), "");
    round_trip(
        RestartServiceRequest {
            name: "é€\u{85}\t\"'\\\x001\n".into(),
        },
        "name: \"é€\\302\\205\\t\\\"'\\\\\\0001\\n\"\n",
    );
    round_trip(
        MessageErrorData {
            message_id: b"\xc3\xa91\x7f".as_slice().into(),
            error: String::new(),
        },
        "message_id: \"\\303\\2511\\177\"\n",
    );
    round_trip(
        daemonservice::Config {
            argv: vec!["a".into(), String::new()],
            std_params: Some(Default::default()),
            memory_limit: i64::MIN,
            ..Default::default()
        },
        "argv: \"a\"\nargv: \"\"\nmemory_limit: -9223372036854775808\nstd_params {\n}\n",
    );
    round_trip(
        ContactData {
            allowed_messages: [("b".into(), u64::MAX), ("a".into(), 0)].into(),
            ..Default::default()
        },
        "AllowedMessages {\n  key: \"a\"\n  value: 0\n}\n\
         AllowedMessages {\n  key: \"b\"\n  value: 18446744073709551615\n}\n",
    );
    round_trip(
        ClientResourceUsageRecord {
            mean_user_cpu_rate: 0.1,
            max_user_cpu_rate: -3.0,
            mean_system_cpu_rate: f32::INFINITY,
            max_system_cpu_rate: f32::MIN_POSITIVE,
            ..Default::default()
        },
        &format!(
            "mean_user_cpu_rate: 0.1\nmax_user_cpu_rate: -3\nmean_system_cpu_rate: inf\nmax_system_cpu_rate: {}\n",
            f32::MIN_POSITIVE
        ),
    );
    let message = |priority| crate::fleetspeak::Message {
        priority,
        ..Default::default()
    };
    round_trip(message(1), "priority: LOW\n");
    round_trip(message(9), "priority: 9\n");
}

#[test]
fn any_that_would_lose_something_is_printed_unexpanded() {
    for (type_url, value) in [
        ("type.googleapis.com/a.B", &b"x"[..]),
        ("a-b.example/c/fleetspeak.DieRequest", b"\x08\x01"),
        ("fleetspeak.DieRequest", b""),
        ("type.googleapis.com/fleetspeak.DieRequest", b"\x08"),
        ("type.googleapis.com/fleetspeak.DieRequest", b"\x10\x01"),
        (
            "type.googleapis.com/fleetspeak.ClientServiceConfigs",
            b"\x0a\x02\x78\x01",
        ),
        ("", b""),
    ] {
        let any = Any {
            type_url: type_url.into(),
            value: value.into(),
        };
        let config = ServiceConfig {
            config: Some(any),
            ..Default::default()
        };
        let text = print(&config);
        assert!(!text.contains('['), "{text}");
        assert_eq!(parse(&text), Ok(config), "{text}");
    }
}
