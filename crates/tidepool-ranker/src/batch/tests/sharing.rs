//! Who shares a batch, and that each gets its own of it.

use super::*;

#[tokio::test]
async fn a_lone_request_goes_at_once_and_those_that_come_meanwhile_go_together() {
    let site = Site::new(Rows::gated(), options());
    let first = site.submit(job(&site.model, 5, 1));
    until("it has left", || site.rows.count() == 1).await;
    let others: Vec<_> = [(7, 2), (1, 3), (4, 4)]
        .map(|(rows, seed)| (rows, seed, site.submit(job(&site.model, rows, seed))))
        .into();
    assert_eq!((site.batcher.waiting_rows(), site.batcher.under_way()), (12, 1));
    site.rows.let_through(2);
    assert_eq!(answer(first).await.unwrap(), scores(5, 1));
    for (rows, seed, ticket) in others {
        let progress = ticket.progress().clone();
        assert_eq!(answer(ticket).await.unwrap(), scores(rows, seed), "{seed}");
        let share = progress.share();
        assert_eq!((share.batch_requests, share.batch_rows, share.batches), (3, 12, 1));
        assert_eq!(share.counts.epoch, Epoch(7));
        assert!(share.waited.is_some() && share.lookup.is_some() && share.dense.is_some());
    }
    assert_eq!(site.rows.count(), 2, "one lookup for three requests");
    assert_eq!(*site.sums.ran.lock().unwrap(), [5, 12]);
    // One bag per user, whoever has how many candidates.
    let asked = site.rows.ids(1);
    assert_eq!((&asked[0], &asked[1]), (&vec![1_002, 1_003, 1_004], &vec![22, 30, 23, 30, 24, 30]));
    let request = site.rows.asked.lock().unwrap()[1].0.clone();
    assert_eq!((request.request_id.as_str(), request.features.len()), ("batch-m-0", 3));
}

#[tokio::test]
async fn the_next_is_fetched_while_one_runs_and_no_more_than_may_be_are_under_way() {
    let site = Site::new(Rows::open(), BatchOptions { max_concurrent_batches: 2, ..options() });
    site.sums.hold(true);
    let mut tickets = vec![site.submit(job(&site.model, 100, 0))];
    until("it runs", || site.sums.runs_begun.load(Ordering::SeqCst) == 1).await;
    tickets.push(site.submit(job(&site.model, 100, 1)));
    until("the second is fetched beside it", || site.rows.count() == 2).await;
    tickets.extend([2, 3].map(|seed| site.submit(job(&site.model, 40, seed))));
    // Whatever could go on has gone on once others have had their turn.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((site.rows.count(), site.batcher.under_way(), site.batcher.waiting_rows()), (2, 2, 80));
    site.sums.hold(false);
    for (seed, ticket) in tickets.into_iter().enumerate() {
        let rows = if seed < 2 { 100 } else { 40 };
        assert_eq!(answer(ticket).await.unwrap(), scores(rows, seed as u64));
    }
    assert_eq!(site.rows.count(), 3, "those that gathered went together");
}

#[tokio::test]
async fn each_has_its_own_counts_and_a_wrong_one_fails_alone() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let missing = |job: &mut Job| {
        job.inputs[3] =
            InputRows::Bags { ids: vec![5, ROWS, ROWS + 1], lengths: Some(vec![1, 2]), weights: None };
    };
    let (mut good, mut lacking, mut bad) = (job(&site.model, 4, 8), job(&site.model, 2, 9), site.job(1));
    missing(&mut lacking);
    good.noted = true;
    bad.inputs[1] = InputRows::Numbers(vec![7.0]);
    site.sums.refuses_sevens.store(true, Ordering::SeqCst);
    let tickets = [good, lacking, bad].map(|job| site.submit(job));
    let progress = tickets.each_ref().map(|ticket| ticket.progress().clone());
    site.rows.let_through(2);
    answer(held).await.unwrap();
    let [good, lacking, bad] = tickets;
    assert_eq!(answer(good).await.unwrap(), scores(4, 8));
    assert_eq!(answer(lacking).await.unwrap().len(), 2);
    let error = answer(bad).await.unwrap_err();
    assert!(matches!(&error, RankError::Dense(DenseError::Input { problem, .. }) if problem == "a seven"));
    let counts = progress.each_ref().map(|p| p.share().counts);
    assert_eq!(counts.map(|c| (c.missing, c.defaulted)), [(0, 1), (2, 1), (0, 0)], "{counts:?}");
    assert!(counts.iter().all(|c| c.rows == counts[0].rows && c.nodes == 1), "those of the batch");
    assert!(progress.iter().all(|p| p.account().is_some()), "one wants it noted, so all have it");
}

#[tokio::test]
async fn what_is_too_much_together_is_asked_for_alone() {
    let site = Site::new(Rows { only_alone: true, ..Rows::gated() }, options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let tickets: Vec<_> = (1..4).map(|seed| site.submit(job(&site.model, 10, seed))).collect();
    site.rows.let_through(5);
    answer(held).await.unwrap();
    for (seed, ticket) in (1..4).zip(tickets) {
        assert_eq!(answer(ticket).await.unwrap(), scores(10, seed));
    }
    assert_eq!(site.rows.count(), 5, "once together, then each alone");
    assert_eq!(site.batcher.waiting_rows(), 0);
}

#[tokio::test]
async fn what_is_refused_together_is_split_and_split_again() {
    let site = Site::new(Rows { only_alone: true, ..Rows::gated() }, options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let tickets: Vec<_> = (0..8).map(|seed| site.submit(job(&site.model, 10, seed))).collect();
    site.rows.let_through(14);
    answer(held).await.unwrap();
    for (seed, ticket) in (0..8).zip(tickets) {
        assert_eq!(answer(ticket).await.unwrap(), scores(10, seed));
    }
    let asked = site.rows.asked.lock().unwrap();
    let mut users: Vec<_> = asked.iter().map(|(request, _)| request.features[0].ids.len()).collect();
    users.sort_unstable();
    assert_eq!(users, [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 8]);
}

#[tokio::test]
async fn a_huge_request_is_cut_and_a_small_one_is_answered_meanwhile() {
    let site = Site::new(Rows::gated(), BatchOptions { max_waiting_rows: 50, ..options() });
    let huge = site.submit(job(&site.model, 950, 5));
    let mut huge = Box::pin(answer(huge));
    until("its first piece has left", || site.rows.count() == 1).await;
    let small = site.try_submit(site.job(3));
    assert_eq!(small.unwrap_err().code(), ErrorCode::Overloaded, "so much waits already");
    site.rows.let_through(9);
    until("its last piece but one has left", || site.batcher.waiting_rows() == 0).await;
    let small = site.submit(job(&site.model, 3, 6));
    assert!(futures_pending(&mut huge).await, "its last piece is not let through");
    site.rows.let_through(2);
    assert_eq!(huge.await.unwrap(), scores(950, 5));
    assert_eq!(answer(small).await.unwrap(), scores(3, 6));
    let users: Vec<_> = (0..site.rows.count()).map(|at| site.rows.ids(at)[0].len()).collect();
    assert_eq!(users.iter().sum::<usize>(), 2, "the user of all its pieces was looked up once: {users:?}");
    assert!(site.sums.ran.lock().unwrap().iter().all(|rows| *rows <= 100));
}

/// Whether a future is not ready now.
async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| {
        let ready = std::pin::Pin::new(&mut *future).poll(context).is_ready();
        std::task::Poll::Ready(!ready)
    })
    .await
}

#[tokio::test]
async fn small_requests_take_turns_with_the_pieces_of_a_huge_one() {
    let site = Site::new(Rows::gated(), options());
    let huge = site.submit(job(&site.model, 900, 1));
    until("its first piece has left", || site.rows.count() == 1).await;
    let small = [2, 3].map(|seed| site.submit(job(&site.model, 4, seed)));
    site.rows.let_through(2);
    for (seed, small) in [2, 3].into_iter().zip(small) {
        assert_eq!(answer(small).await.unwrap(), scores(4, seed));
    }
    // Two lookups were let through: the first piece of the one, and then the others.
    assert!(site.batcher.waiting_rows() >= 700, "{}", site.batcher.waiting_rows());
    site.rows.let_through(8);
    assert_eq!(answer(huge).await.unwrap(), scores(900, 1));
}

#[tokio::test]
async fn tenants_are_never_in_one_batch_and_take_turns() {
    let site = Site::new(Rows::gated(), options());
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let of = |tenant: &str, seed| Job { tenant: Some(tenant.into()), ..job(&site.model, 10, seed) };
    let tickets = [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)]
        .map(|(tenant, seed)| (seed, site.submit(of(tenant, seed))));
    site.rows.let_through(3);
    answer(held).await.unwrap();
    for (seed, ticket) in tickets {
        assert_eq!(answer(ticket).await.unwrap(), scores(10, seed));
    }
    let asked = site.rows.asked.lock().unwrap();
    let asked: Vec<_> =
        asked.iter().map(|(request, o)| (o.tenant.as_deref(), request.features[0].ids.len())).collect();
    assert_eq!(asked, [(None, 1), (Some("a"), 3), (Some("b"), 2)]);
}

#[tokio::test]
async fn releases_share_the_place_of_their_model_and_no_batch() {
    let site = Site::new(Rows::gated(), options());
    let (next, _) = model("m");
    let held = site.submit(site.job(1));
    until("it has left", || site.rows.count() == 1).await;
    let tickets = [
        site.submit(job(&site.model, 3, 1)),
        site.submit(job(&next, 3, 2)),
        site.submit(job(&site.model, 3, 3)),
        site.submit(job(&next, 3, 4)),
    ];
    assert_eq!(site.batcher.under_way(), 1);
    site.rows.let_through(3);
    answer(held).await.unwrap();
    for (seed, ticket) in (1..5).zip(tickets) {
        assert_eq!(answer(ticket).await.unwrap(), scores(3, seed));
    }
    assert_eq!(
        (site.rows.ids(1)[0].clone(), site.rows.ids(2)[0].clone()),
        (vec![1_001, 1_003], vec![1_002, 1_004])
    );
}
