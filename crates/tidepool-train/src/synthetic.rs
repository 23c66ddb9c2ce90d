//! A data set with a planted truth: every label is drawn with a probability that is known, so the best AUC that any
//! model could reach is known too.

use crate::{
    data::{Dataset, Event, Item, User},
    rng::Rng,
};

/// How large a synthetic data set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticSize {
    /// Users.
    pub users: u32,
    /// Items.
    pub items: u32,
    /// Events of all users together, about; a user sees an item at most once.
    pub events: u32,
}

impl Default for SyntheticSize {
    /// About the size of MovieLens-100K.
    fn default() -> Self {
        Self { users: 1_000, items: 1_700, events: 100_000 }
    }
}

/// How steeply the popularity of items falls.
const ZIPF_EXPONENT: f64 = 0.9;
/// Dimensions of the planted taste.
const TASTE: usize = 3;
/// The logit of a user and an item about whom there is nothing to say.
const BASE_LOGIT: f32 = -0.6;
/// The logit of a conversion of which there is nothing to say.
const CONVERSION_LOGIT: f32 = -0.7;
/// People look for what they will like: an item that is met by chance is looked at with this probability at least,
/// and with the more the likelier it is to be liked.
const LOOKED_AT_FROM: f64 = 0.1;
/// Age of the youngest user, and years from there to the oldest.
const AGES: (f64, f64) = (16.0, 55.0);

const GENRES: [&str; 12] = [
    "Adventure",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Thriller",
    "Western",
];
const OCCUPATIONS: [&str; 10] = [
    "artist",
    "baker",
    "doctor",
    "engineer",
    "farmer",
    "librarian",
    "musician",
    "sailor",
    "student",
    "teacher",
];
const FIRST: [&str; 16] = [
    "Silent", "Golden", "Last", "Hidden", "Distant", "Broken", "Crimson", "Winter", "Restless", "Paper",
    "Second", "Hollow", "Electric", "Borrowed", "Gentle", "Northern",
];
const SECOND: [&str; 16] = [
    "Tide", "Lantern", "Harbour", "Orchard", "Signal", "Garden", "Voyage", "Mirror", "Summer", "Island",
    "Letter", "Engine", "Shadow", "Bridge", "Meadow", "Clock",
];

/// What the labels are drawn from.
struct Truth {
    user_bias: Vec<f32>,
    user_taste: Vec<[f32; TASTE]>,
    item_bias: Vec<f32>,
    item_taste: Vec<[f32; TASTE]>,
    genre_of_occupation: Vec<Vec<f32>>,
    genre_by_age: Vec<f32>,
}

impl Truth {
    fn draw(rng: &mut Rng, size: SyntheticSize) -> Self {
        let mut normals = |n: usize, scale: f32| (0..n).map(|_| rng.normal() * scale).collect::<Vec<f32>>();
        let user_bias = normals(size.users as usize, 0.8);
        let item_bias = normals(size.items as usize, 0.8);
        let genre_by_age = normals(GENRES.len(), 0.5);
        let genre_of_occupation = OCCUPATIONS.iter().map(|_| normals(GENRES.len(), 0.5)).collect();
        let mut tastes =
            |n: u32| (0..n).map(|_| std::array::from_fn(|_| rng.normal() * 0.9)).collect::<Vec<_>>();
        let (user_taste, item_taste) = (tastes(size.users), tastes(size.items));
        Self { user_bias, user_taste, item_bias, item_taste, genre_of_occupation, genre_by_age }
    }

    /// The probability that `user` likes `item`; their places are `u` and `i`.
    fn probability(&self, u: usize, user: &User, i: usize, item: &Item) -> f32 {
        let taste: f32 = self.user_taste[u].iter().zip(&self.item_taste[i]).map(|(a, b)| a * b).sum();
        let years = (user.age - 35.0) / 12.0;
        let by_genre: f32 = item
            .genres
            .iter()
            .map(|&g| {
                self.genre_of_occupation[user.occupation as usize][g as usize]
                    + years * self.genre_by_age[g as usize]
            })
            .sum::<f32>()
            / item.genres.len().max(1) as f32;
        let logit = BASE_LOGIT + self.user_bias[u] + self.item_bias[i] + taste + by_genre;
        1.0 / (1.0 + (-logit).exp())
    }
}

/// Makes a data set; the same seed and size always make the same one. Items are met by a Zipf law of their place
/// and by taste, most users have tens of events and a few have hundreds, and the item ids are spread over all of `u64`.
#[must_use]
pub fn synthetic(seed: u64, size: SyntheticSize) -> Dataset {
    let mut rng = Rng::fork(seed, 0);
    let truth = Truth::draw(&mut rng, size);
    let users: Vec<User> = (0..size.users)
        .map(|place| User {
            id: 1 + u64::from(place),
            age: (AGES.0 + AGES.1 * rng.uniform() * rng.uniform()).floor() as f32,
            gender: if rng.uniform() < 0.5 { 1.0 } else { 0.0 },
            occupation: rng.below(OCCUPATIONS.len()) as u32,
        })
        .collect();
    let items: Vec<Item> = (0..size.items).map(|place| draw_item(&mut rng, place)).collect();

    let popularity: Vec<f64> = (0..size.items)
        .scan(0.0, |sum, rank| {
            *sum += (f64::from(rank) + 10.0).powf(-ZIPF_EXPONENT);
            Some(*sum)
        })
        .collect();
    let total = popularity.last().copied().unwrap_or_default();
    let activity: Vec<f64> = users.iter().map(|_| (f64::from(rng.normal()) * 0.8).exp()).collect();
    let all: f64 = activity.iter().sum();

    let mut events = Vec::new();
    for (u, user) in users.iter().enumerate() {
        let wanted = (f64::from(size.events) * activity[u] / all).round().max(20.0) as usize;
        // Past half of the catalogue the most popular items are all taken, and the law bends.
        let wanted = wanted.min(items.len() / 2);
        let mut seen = vec![false; items.len()];
        let mut time = 880_000_000 + rng.below(10_000_000) as i64;
        let mut count = 0;
        while count < wanted {
            let point = rng.uniform() * total;
            let i = popularity.partition_point(|&sum| sum <= point).min(items.len() - 1);
            let probability = truth.probability(u, user, i, &items[i]);
            let looked_at = LOOKED_AT_FROM + (1.0 - LOOKED_AT_FROM) * f64::from(probability);
            if seen[i] || rng.uniform() >= looked_at {
                continue;
            }
            seen[i] = true;
            time += 1 + rng.below(3_600) as i64;
            events.push(Event {
                user: u as u32,
                item: i as u32,
                time,
                label: rng.uniform() < f64::from(probability),
                true_probability: Some(probability),
                conversion: false,
                true_conversion: None,
            });
            count += 1;
        }
    }
    draw_conversions(seed, &mut events, &users, &items);
    let mut data = Dataset {
        name: "synthetic".into(),
        users,
        items,
        genres: GENRES.map(String::from).to_vec(),
        occupations: OCCUPATIONS.map(String::from).to_vec(),
        train: Vec::new(),
        validation: Vec::new(),
        test: Vec::new(),
    };
    data.split(events);
    data
}

/// Draws which of the liked events are conversions: some users and items convert more than others, and the young less.
/// Its random numbers are a stream of their own, so that a seed means the same events with it and without.
fn draw_conversions(seed: u64, events: &mut [Event], users: &[User], items: &[Item]) {
    let mut rng = Rng::fork(seed, 1);
    let of_user: Vec<f32> = users.iter().map(|_| rng.normal() * 0.8).collect();
    let of_item: Vec<f32> = items.iter().map(|_| rng.normal() * 1.0).collect();
    for event in events {
        let (user, item) = (event.user as usize, event.item as usize);
        let years = (users[user].age - 35.0) / 12.0;
        let logit = CONVERSION_LOGIT + of_user[user] + of_item[item] + 0.4 * years;
        let probability = 1.0 / (1.0 + (-logit).exp());
        event.true_conversion = Some(probability);
        event.conversion = event.label && rng.uniform() < f64::from(probability);
    }
}

fn draw_item(rng: &mut Rng, place: u32) -> Item {
    let mut genres: Vec<u32> = (0..1 + rng.below(3)).map(|_| rng.below(GENRES.len()) as u32).collect();
    genres.sort_unstable();
    genres.dedup();
    let (first, second) = (FIRST[rng.below(FIRST.len())], SECOND[rng.below(SECOND.len())]);
    Item {
        id: tidepool_types::mix64(u64::from(place) + 1),
        title: format!("The {first} {second}, no. {}", place + 1),
        year: Some(1_930 + rng.below(69) as u16),
        genres,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: SyntheticSize = SyntheticSize { users: 200, items: 300, events: 8_000 };

    #[test]
    fn a_seed_means_the_same_data_and_another_seed_other_data() {
        assert_eq!(synthetic(1, SMALL), synthetic(1, SMALL));
        assert_ne!(synthetic(1, SMALL).train, synthetic(2, SMALL).train);
    }

    #[test]
    fn labels_follow_their_probabilities_and_popularity_its_law() {
        let data = synthetic(3, SyntheticSize::default());
        let all = || data.train.iter().chain(&data.validation).chain(&data.test);
        assert!((95_000..110_000).contains(&all().count()), "{}", all().count());
        for decile in 1..9 {
            let of: Vec<_> = all()
                .filter(|e| e.true_probability.unwrap() * 10.0 >= decile as f32)
                .filter(|e| e.true_probability.unwrap() * 10.0 < (decile + 1) as f32)
                .collect();
            let liked = of.iter().filter(|e| e.label).count() as f32 / of.len() as f32;
            assert!((liked - (decile as f32 + 0.5) / 10.0).abs() < 0.03, "decile {decile}: {liked}");
        }
        let mut counts = vec![0u32; data.items.len()];
        all().for_each(|e| counts[e.item as usize] += 1);
        assert!(counts[0] > 5 * counts[500] && counts[500] > counts[1_600], "{:?}", &counts[..5]);
    }

    #[test]
    fn each_user_meets_an_item_once_and_time_runs_from_train_to_test() {
        let data = synthetic(4, SMALL);
        let mut pairs: Vec<_> =
            data.train.iter().chain(&data.validation).chain(&data.test).map(|e| (e.user, e.item)).collect();
        let n = pairs.len();
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), n);
        for user in 0..SMALL.users {
            let times = |part: &[Event]| {
                let times = part.iter().filter(|e| e.user == user).map(|e| e.time);
                (times.clone().min().unwrap(), times.max().unwrap())
            };
            let (train, validation, test) = (times(&data.train), times(&data.validation), times(&data.test));
            assert!(train.1 < validation.0 && validation.1 < test.0, "user {user}");
        }
    }
}
