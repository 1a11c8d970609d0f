//! Every method with every role.

use std::collections::BTreeSet;
use std::convert::Infallible;

use futures::FutureExt;
use http::{Request, Response};
use prost_reflect::DescriptorPool;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};

use super::*;

/// Answers every call with success.
#[derive(Clone)]
struct Willing;

impl Service<Request<Body>> for Willing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        Ok(()).into()
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(request.extensions().get::<Caller>().is_some());
        std::future::ready(Ok(Response::default()))
    }
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Calls a method with a token, or without; the token of a role is its name.
fn call(path: &str, token: Option<&str>) -> Code {
    let text: String = Role::ALL
        .iter()
        .map(|role| format!("token {0}-er {1} {0}\n", role.name(), sha256(role.name())))
        .collect();
    let access = Access::new(Some(AccessList::parse(&text).unwrap()));
    let mut request = Request::builder().uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = Checked::new(Willing, access).call(request.body(Body::empty()).unwrap());
    let answer = answer.now_or_never().unwrap().unwrap();
    Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code())
}

/// Returns the paths of all methods of the admin interface.
fn methods() -> BTreeSet<String> {
    let pool = DescriptorPool::decode(fleethold_proto::DESCRIPTORS).unwrap();
    let ours = pool.get_service_by_name("fleethold.admin.v1.Broadcasts");
    assert_eq!(ours.unwrap().methods().count(), 1, "give it a role here");
    let progress = "/fleethold.admin.v1.Broadcasts/GetBroadcastProgress";
    assert_eq!(call(progress, Some("read")), Code::Ok);
    assert_eq!(call(progress, Some("files")), Code::PermissionDenied);
    let admin = pool.get_service_by_name("fleetspeak.server.Admin").unwrap();
    admin
        .methods()
        .map(|method| method.name().to_owned())
        .collect()
}

/// Which role a method needs, and `None` for those that any caller may use.
/// A method that is missing here fails the test below.
const MATRIX: [(&str, Option<Role>); 17] = [
    ("BlacklistClient", Some(Role::Revoke)),
    ("CreateBroadcast", Some(Role::Broadcast)),
    ("DeleteFile", Some(Role::Files)),
    ("DeletePendingMessages", Some(Role::Send)),
    ("DisableBroadcasts", Some(Role::Broadcast)),
    ("FetchClientResourceUsageRecords", Some(Role::Read)),
    ("GetMessageStatus", Some(Role::Read)),
    ("GetPendingMessageCount", Some(Role::Read)),
    ("GetPendingMessages", Some(Role::Read)),
    ("InsertMessage", Some(Role::Send)),
    ("KeepAlive", None),
    ("ListActiveBroadcasts", Some(Role::Read)),
    ("ListClientContacts", Some(Role::Read)),
    ("ListClients", Some(Role::Read)),
    ("StoreFile", Some(Role::Files)),
    ("StreamClientContacts", Some(Role::Read)),
    ("StreamClientIds", Some(Role::Read)),
];

#[test]
fn s16_every_method_is_for_the_role_in_the_matrix_and_for_no_other() {
    let expected: BTreeSet<_> = MATRIX.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(
        methods(),
        expected,
        "give every method a role, here and in `need`"
    );
    for (method, needed) in MATRIX {
        let path = format!("/fleetspeak.server.Admin/{method}");
        for role in Role::ALL {
            let expected = match needed {
                Some(needed) if needed != role => Code::PermissionDenied,
                _ => Code::Ok,
            };
            assert_eq!(
                call(&path, Some(role.name())),
                expected,
                "{method}, {role:?}"
            );
        }
        assert_eq!(call(&path, None), Code::Unauthenticated, "{method}");
        assert_eq!(
            call(&path, Some("guess")),
            Code::Unauthenticated,
            "{method}"
        );
    }
}

#[test]
fn s10_health_is_for_everybody_and_reflection_for_every_caller() {
    assert_eq!(call("/grpc.health.v1.Health/Check", None), Code::Ok);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(call(reflection, None), Code::Unauthenticated);
    assert_eq!(call(reflection, Some("files")), Code::Ok);
}

#[test]
fn s16_method_without_a_role_is_nobodys() {
    for role in Role::ALL {
        assert_eq!(
            call("/fleetspeak.server.Admin/New", Some(role.name())),
            Code::Unimplemented
        );
    }
    assert_eq!(
        call("/fleetspeak.server.Admin/New", None),
        Code::Unauthenticated
    );
}

#[test]
fn access_files_have_comments_several_roles_and_all() {
    let text = format!(
        "# operators\n\ntoken a {} read,payload # both\ncertificate b {} all\n",
        sha256("a"),
        sha256("b")
    );
    let list = AccessList::parse(&text).unwrap();
    let a = list.by_token(b"a").unwrap();
    assert!(a.has(Role::Read) && a.has(Role::Payload) && !a.has(Role::Send));
    assert!(
        Role::ALL
            .iter()
            .all(|role| list.by_key(b"b").unwrap().has(*role))
    );
    // A token is no key and a key is no token.
    assert!(list.by_key(b"a").is_none() && list.by_token(b"b").is_none());
    assert!(AccessList::parse("").unwrap().is_empty());
    assert!(!format!("{list:?}").contains(&sha256("a")));
}

#[test]
fn s18_wrong_lines_are_named_without_their_secrets() {
    let good = sha256("secret");
    for (line, problem) in [
        (format!("token a {good}"), "3 fields"),
        (format!("user a {good} read"), "neither `token`"),
        ("token a secret read".to_owned(), "not 64 hex digits"),
        (format!("token a +{} read", &good[1..]), "not 64 hex digits"),
        (
            format!("token a {good} read,write"),
            "a role that does not exist",
        ),
        (
            format!("token b {good} read\ntoken a {good} read"),
            "an earlier line",
        ),
    ] {
        let text = format!("\n{line}\n");
        let error = AccessList::parse(&text).unwrap_err().to_string();
        let last = text.lines().count();
        assert!(error.starts_with(&format!("line {last}: ")), "{error}");
        assert!(error.contains(problem), "{error}");
        assert!(
            !error.contains("secret") && !error.contains(&good[1..]),
            "{error}"
        );
    }
}
