//! What a server answers to notifications.

use super::*;

#[tokio::test]
async fn notifications_in_upstreams_form_wake_the_stream_and_others_are_answered_as_upstream_does()
{
    let fleet = Installation::new();
    let server = fleet
        .server(&[Part::Agents, Part::Notifications], |_| {})
        .await;
    let to = server.notifications_addr().unwrap();
    let (agent, mut stream) = fleet.stream(&server).await;
    let id = agent.id.to_string();
    for (method, path, expected) in [
        ("POST", "/".to_owned(), 404),
        ("POST", "/client".to_owned(), 404),
        ("POST", format!("/clients/{id}"), 404),
        ("POST", format!("/client/{id}/more"), 404),
        ("POST", "/client/".to_owned(), 400),
        ("POST", "/client/0123".to_owned(), 400),
        ("POST", "/client/0123456789abcdeg".to_owned(), 400),
        ("POST", "/client/0123456789abcdef0".to_owned(), 400),
        ("GET", format!("/client/{id}"), 400),
        ("PUT", format!("/client/{id}"), 400),
        // A client that is not here, and one that nobody knows.
        ("POST", "/client/0123456789ABCDEF".to_owned(), 200),
    ] {
        let (status, _) = send(to, method, &path, &[], b"").await;
        assert_eq!(status.as_u16(), expected, "{method} {path}");
    }
    let message = fleet.message(Some(agent.id), "hello", 1);
    fleet.store.store_messages(&[message], None).await.unwrap();
    let (status, body) = send(to, "POST", &format!("/client/{id}"), &[], b"").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    assert_eq!(next_types(&mut stream).await, ["1"]);
    let received = "fleethold_notifications_received_total";
    assert_eq!(metric(&server, received, "refused").await, 10.0);
    assert_eq!(metric(&server, received, "no_stream").await, 1.0);
    assert_eq!(metric(&server, received, "woken").await, 1.0);
    server.stop().await;
}

#[tokio::test]
async fn s17_our_own_form_has_limits_and_wakes_many_clients_at_once() {
    let fleet = Installation::new();
    let server = fleet
        .server(&[Part::Agents, Part::Notifications], |_| {})
        .await;
    let to = server.notifications_addr().unwrap();
    let path = "/fleethold/v1/notifications";
    for (method, body) in [
        ("GET", vec![]),
        ("POST", vec![0; 8]),
        ("POST", vec![0; 10]),
        ("POST", vec![0; 9_009]),
    ] {
        let (status, text) = send(to, method, path, &[], &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {text}");
    }
    let (first, mut first_stream) = fleet.stream(&server).await;
    let (second, mut second_stream) = fleet.stream(&server).await;
    let mut body = Vec::new();
    for agent in [&first, &second] {
        let message = fleet.message(Some(agent.id), "hello", 1);
        fleet.store.store_messages(&[message], None).await.unwrap();
        body.push(0);
        body.extend_from_slice(agent.id.as_bytes());
    }
    body.resize(9_000, 0);
    let (status, _) = send(to, "POST", path, &[], &body).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(next_types(&mut first_stream).await, ["1"]);
    assert_eq!(next_types(&mut second_stream).await, ["1"]);
    server.stop().await;
}

#[tokio::test]
async fn s17_server_with_a_secret_refuses_who_does_not_know_it() {
    let fleet = Installation::new();
    let path = "/fleethold/v1/notifications";
    let upstream = "/client/0123456789abcdef";
    let mut body = vec![0; 9];
    body[1..].copy_from_slice(&[1; 8]);
    for accept_unsigned in [false, true] {
        let server = fleet
            .server(&[Part::Agents, Part::Notifications], |config| {
                config.notifications.secret = Some(secret("only for the servers"));
                config.notifications.accept_unsigned = accept_unsigned;
            })
            .await;
        let to = server.notifications_addr().unwrap();
        let expected = match accept_unsigned {
            true => StatusCode::OK,
            false => StatusCode::FORBIDDEN,
        };
        let (status, text) = send(to, "POST", upstream, &[], b"").await;
        assert_eq!(status, expected, "{text}");
        let (status, text) = send(to, "POST", path, &[], &body).await;
        assert_eq!(status, expected, "{text}");
        assert!(!text.contains("only for"), "{text}");
        // A wrong signature is worse than none.
        let seconds = 1_700_000_000;
        for wrong in [String::new(), format!("{seconds}.{}", "0".repeat(64))] {
            let headers = [("x-fleethold-signature", wrong.as_str())];
            let (status, _) = send(to, "POST", path, &headers, &body).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{wrong}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn s17_unsigned_notifications_have_a_rate_that_signed_ones_do_not_share() {
    let fleet = Installation::new();
    let with_secret =
        |config: &mut Config| config.notifications.secret = Some(secret("only for the servers"));
    let admin_only = fleet.server(&[Part::Admin], with_secret).await;
    let frontend = fleet
        .server(&[Part::Agents, Part::Notifications], |config| {
            with_secret(config);
            config.notifications.accept_unsigned = true;
        })
        .await;
    let (agent, mut stream) = fleet.stream(&frontend).await;
    let to = frontend.notifications_addr().unwrap();
    let nobody = [0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(1_000);
    let mut accepted = 0;
    let refused = loop {
        let (status, _) = send(to, "POST", "/fleethold/v1/notifications", &[], &nobody).await;
        if status != StatusCode::OK {
            break status;
        }
        accepted += 1;
        assert!(accepted < 5_000, "there is no limit");
    };
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!(accepted >= 99, "only {accepted} calls");
    fleet.insert(&admin_only, agent.id, 1).await;
    assert_eq!(next_types(&mut stream).await, ["1"]);
    admin_only.stop().await;
    frontend.stop().await;
}
