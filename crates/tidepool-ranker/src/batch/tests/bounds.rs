//! What waits, how long, and what a model may have.

use super::*;

#[tokio::test]
async fn one_whose_time_is_up_leaves_its_batch_and_the_others_go_on() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let budget = Duration::from_millis(30);
    let short = Job { deadline: Instant::now() + budget, budget, ..site.job(1) };
    let (short, long) = (site.submit(short), site.submit(job(&site.model, 2, 3)));
    site.rows.let_through(1);
    answer(held).await.unwrap();
    until("both have left", || site.rows.count() == 2).await;
    let error = answer(short).await.unwrap_err();
    assert!(matches!(error, RankError::DeadlineExceeded(of) if of == budget), "{error:?}");
    let timeout = site.rows.asked.lock().unwrap()[1].1.timeout;
    assert!(timeout > Duration::from_secs(20), "the lookup has the time of the other: {timeout:?}");
    site.rows.let_through(1);
    assert_eq!(answer(long).await.unwrap(), scores(2, 3));
    assert_eq!(*site.sums.ran.lock().unwrap(), [1, 2], "nothing is computed for nobody");
}

#[tokio::test]
async fn who_left_before_the_batch_did_costs_nothing() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    drop(site.submit(site.job(50)));
    let late = Job { deadline: Instant::now(), budget: Duration::ZERO, ..site.job(50) };
    let late = site.submit(late);
    site.rows.let_through(1);
    answer(held).await.unwrap();
    // Who is waited for until the batch would leave is late, and not gone.
    until("nobody waits", || site.batcher.waiting_rows() == 0).await;
    assert_eq!(answer(late).await.unwrap_err().code(), ErrorCode::DeadlineExceeded);
    until("nothing is left", || site.batcher.under_way() == 0 && site.batcher.waiting_rows() == 0).await;
    assert_eq!(site.rows.count(), 1);

    // Of a batch that is being fetched, all leave.
    drop(site.submit(site.job(1)));
    until("it was given up", || site.batcher.under_way() == 0).await;
    assert_eq!(*site.sums.ran.lock().unwrap(), [1]);
    let registry = prometheus::Registry::new();
    site.metrics.register(&registry).unwrap();
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        "tidepool_ranker_batch_dropped_requests_total{model=\"m\",reason=\"gone\"} 1",
        "tidepool_ranker_batch_dropped_requests_total{model=\"m\",reason=\"late\"} 1",
        "tidepool_ranker_batch_waiting_rows{model=\"m\"} 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn what_waits_is_bounded_and_refused_at_once() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let waiting: Vec<_> = (0..9).map(|seed| site.submit(job(&site.model, 100, seed))).collect();
    let error = site.try_submit(site.job(101)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model m is busy: 9 requests with 900 rows and 18288 bytes are waiting, 9 with 900 rows of this tenant; one \
         alone may have 20 with 1000 and 1000000, and less the more others wait"
    );
    assert_eq!(error.code(), ErrorCode::Overloaded);
    let small: Vec<_> = (0..11).map(|seed| site.submit(job(&site.model, 1, seed))).collect();
    assert_eq!(site.try_submit(site.job(1)).unwrap_err().code(), ErrorCode::Overloaded, "20 requests");
    site.rows.let_through(20);
    answer(held).await.unwrap();
    for ticket in waiting.into_iter().chain(small) {
        answer(ticket).await.unwrap();
    }
    assert_eq!(site.batcher.waiting_rows(), 0);
}

#[tokio::test]
async fn a_tenant_that_fills_the_line_leaves_room_for_others() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let of = |tenant: &str, rows, seed| Job { tenant: Some(tenant.into()), ..job(&site.model, rows, seed) };
    // Alone, it may have all that is configured: 1,000 rows.
    let greedy: Vec<_> = (0..10).map(|seed| site.submit(of("greedy", 100, seed))).collect();
    let refused = |tenant: &str, rows| site.try_submit(of(tenant, rows, 0)).map(drop).unwrap_err();
    assert_eq!(refused("greedy", 1).code(), ErrorCode::Overloaded);
    // Another has a quarter of it all the same, 250 rows, and a third one what is left of that.
    assert_eq!(refused("small", 251).code(), ErrorCode::Overloaded);
    let small = [site.submit(of("small", 100, 1)), site.submit(of("small", 100, 2))];
    let third = site.submit(of("third", 40, 3));
    let problem = refused("greedy", 1).to_string();
    assert!(
        problem.contains("1240 rows") && problem.contains("10 with 1000 rows of this tenant"),
        "{problem}"
    );
    site.rows.let_through(40);
    for ticket in [held, third].into_iter().chain(greedy).chain(small) {
        answer(ticket).await.unwrap();
    }
    assert_eq!(site.batcher.waiting_rows(), 0);
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes_too() {
    let site = Site::new(Rows::gated(), BatchOptions { max_waiting_bytes: 5_000, ..options() });
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let waiting = [1, 2].map(|seed| site.submit(job(&site.model, 100, seed)));
    let error = site.try_submit(site.job(100)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Overloaded, "each takes 2,032: {error}");
    site.rows.let_through(20);
    for ticket in [held].into_iter().chain(waiting) {
        answer(ticket).await.unwrap();
    }
    answer(site.submit(site.job(400))).await.expect("it has more, and nobody else waits");
}

#[tokio::test]
async fn nobody_is_turned_away_for_whom_nobody_waits_for_or_for_shadows() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let of_shadow = |rows| Job { background: true, ..site.job(rows) };
    let shadow = site.submit(of_shadow(200));
    drop(site.submit(site.job(1_000)));
    assert_eq!(site.try_submit(of_shadow(51)).unwrap_err().code(), ErrorCode::Overloaded, "250 is theirs");
    until("the dropped one has made room", || site.try_submit(site.job(1_000)).is_ok()).await;
    assert_eq!(site.batcher.waiting_rows(), 1_200, "that of the shadow, and the one that has just come");
    site.rows.let_through(9);
    answer(held).await.unwrap();
    assert_eq!(answer(shadow).await.unwrap(), scores(200, 0));
    until("nothing is left", || site.batcher.under_way() == 0 && site.batcher.waiting_rows() == 0).await;
}

#[tokio::test]
async fn one_model_does_not_take_what_another_needs() {
    let few =
        ModelLimits { max_concurrent_batches: Some(1), max_waiting_rows: Some(10), max_memory_bytes: None };
    let options = BatchOptions { max_concurrent_batches: 4, ..options() };
    let site = Site::with(Rows::gated(), options, [(name("m"), few)].into());
    let (other, _) = model("other");
    let others = site.batchers.of(&name("other"));
    let held = site.submit(site.job(5));
    let _waiting = site.submit(site.job(5));
    assert_eq!(site.try_submit(site.job(6)).unwrap_err().code(), ErrorCode::Overloaded);
    // One lookup of `m` is under way and not let through; those of the other model go by.
    let submit = |seed| others.submit(job(&other, 5, seed), |results| Ok(first(results))).unwrap();
    let tickets = [1, 2, 3].map(submit);
    until("each has its own", || site.rows.count() == 4).await;
    assert_eq!((site.batcher.under_way(), others.under_way()), (1, 3));
    site.rows.let_through(5);
    for (seed, ticket) in (1..4).zip(tickets) {
        assert_eq!(answer(ticket).await.unwrap(), scores(5, seed));
    }
    answer(held).await.unwrap();
}

#[tokio::test]
async fn where_lookups_take_long_and_threads_are_free_nobody_waits_long_for_a_place() {
    let max_delay = Duration::from_millis(100);
    let site = Site::new(
        Rows::gated(),
        BatchOptions { places: 1, max_concurrent_batches: 3, max_delay, ..options() },
    );
    let mut tickets = vec![site.submit(job(&site.model, 1, 0))];
    tickets.extend([1, 2].map(|seed| site.submit(job(&site.model, 1, seed))));
    // Nobody else has a turn before this waits for something.
    assert_eq!((site.batcher.under_way(), site.batcher.waiting_rows()), (1, 2), "the place is taken");
    until("both have left together, beside the one that is fetched", || site.rows.count() == 2).await;
    tickets.push(site.submit(job(&site.model, 1, 3)));
    until("a third batch has left", || site.rows.count() == 3).await;
    tickets.push(site.submit(job(&site.model, 1, 4)));
    assert_eq!(site.batcher.waiting_rows(), 1, "no more may be under way");
    site.rows.let_through(4);
    for (seed, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(answer(ticket).await.unwrap(), scores(1, seed as u64));
    }
    assert_eq!((site.rows.count(), site.batcher.waiting_rows()), (4, 0));
}

#[tokio::test]
async fn where_defaults_stand_in_a_lookup_leaves_time_to_the_model_and_like_deadlines_go_together() {
    let rows = Rows { on_unavailable: OnUnavailable::Default, ..Rows::gated() };
    let site = Site::new(rows, options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let of = |seconds| {
        let budget = Duration::from_secs(seconds);
        Job { deadline: Instant::now() + budget, budget, ..site.job(2) }
    };
    let tickets = [of(100), of(1_000), of(110)].map(|job| site.submit(job));
    site.rows.let_through(3);
    answer(held).await.unwrap();
    for ticket in tickets {
        answer(ticket).await.unwrap();
    }
    let asked = site.rows.asked.lock().unwrap();
    let asked: Vec<_> = asked.iter().map(|(r, o)| (r.features[0].ids.len(), o.timeout.as_secs())).collect();
    assert_eq!(asked, [(1, 22), (2, 74), (1, 749)], "three quarters of the least that is left");
}

#[test]
fn who_shares_a_batch_is_judged_by_what_each_has_left_when_it_leaves() {
    let site = Site::new(Rows::open(), options());
    let (now, least) = (Instant::now(), Duration::from_millis(1));
    let of = |left| {
        let job = Job { deadline: now + Duration::from_millis(left), ..site.job(1) };
        let limits = queue::Limits { rows: 100, requests: 8, ids: 10_000, room: Vec::new() };
        Work::new(job, &limits, Ok).unwrap()
    };
    // The second came with as much time as the others, and has waited for most of it.
    let works = [1_000, 50, 1_990, 2_010, 0, 500, 1_000].map(of);
    let asked = |on_unavailable| {
        let mut alike = alike(on_unavailable, now, least);
        works.each_ref().map(|(work, _)| alike(work))
    };
    assert_eq!(asked(OnUnavailable::Default), [true, false, true, false, true, false, true]);
    assert_eq!(asked(OnUnavailable::Fail), [true; 7]);
}

#[test]
fn a_wide_model_has_small_batches_and_memory_is_granted_once() {
    let limits = ModelLimits { max_memory_bytes: Some(1 << 30), ..ModelLimits::default() };
    let site = Site::with(Rows::open(), options(), [(name("m"), limits)].into());
    let mut wide = model("m").0;
    Arc::get_mut(&mut wide).unwrap().inputs[3].width = 1 << 22;
    let most = queue::Limits { rows: 2_048, requests: 64, ids: 9, room: Vec::new() };
    assert_eq!(wide.limits(most.clone()), queue::Limits { rows: 15, ..most.clone() });
    assert_eq!(site.model.limits(most.clone()), most);
    // 12 numbers per user and 3 per candidate; users once per request, and with each candidate.
    assert_eq!(site.batcher.batch_bytes(&site.model), 4 * (100 * 15 + 8 * 12));
    let first = site.batcher.reserve(1 << 29, 1 << 20).unwrap();
    assert_eq!(site.batcher.reserve(1 << 29, 1 << 20).unwrap_err(), (1 << 29, 1 << 30));
    drop(first);
    assert!(site.batcher.reserve(1 << 29, 1 << 20).is_ok());
}

#[test]
fn the_shortest_of_the_last_times_is_known() {
    let mut fastest = Fastest::default();
    assert_eq!(fastest.get(), Duration::ZERO);
    fastest.record(Duration::from_millis(1));
    for _ in 0..Fastest::WINDOW * 2 {
        fastest.record(Duration::from_millis(9));
    }
    assert_eq!(fastest.get(), Duration::from_millis(9), "the first is forgotten");
}
