//! What whole programs work on: made here, the same every time.

use std::fmt::Write as _;

/// A linear congruential generator (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// Two megabytes of words, of which some are frequent, and numbers.
pub(crate) fn text() -> String {
    const SYLLABLES: [&str; 16] =
        ["ka", "lo", "mi", "ter", "an", "su", "re", "po", "in", "da", "ve", "sto", "ri", "ma", "el", "qui"];
    let mut random = Random(1);
    let mut words: Vec<String> = Vec::new();
    for _ in 0..4000 {
        let length = 1 + random.below(4);
        words.push((0..length).map(|_| SYLLABLES[random.below(16) as usize]).collect());
    }
    let mut text = String::new();
    while text.len() < 2 << 20 {
        for _ in 0..10 {
            // Small numbers are the more frequent ones.
            let at = random.below(4000) * random.below(4000) / 4000;
            let _ = write!(text, "{} ", words[at as usize]);
        }
        let _ = writeln!(text, "{}.{:02}", random.below(1000), random.below(100));
    }
    text
}

/// Counts words and sums numbers.
pub(crate) const AWK: &str = "\
{ for (i = 1; i < NF; i++) count[$i]++; sum += $NF * 0.37; if ($NF > 500) high += length($0) }
END { for (word in count) { kinds++; squares += count[word] * count[word] } printf \"%d %.0f %.6f %d\\n\", kinds, squares, sum, high }
";

/// Objects, dictionaries, strings, integers and floats.
pub(crate) const PYTHON: &str = "\
class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y
    def turned(self):
        return Point(self.y, 0.5 * self.x - 0.25)

counts = {}
with open('text') as text:
    for number, line in enumerate(text):
        if number == 6000:
            break
        for word in line.split():
            counts[word] = counts.get(word, 0) + 1
best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]
point = Point(1.0, 2.0)
for _ in range(60000):
    point = point.turned()
total = 0
for number in range(150000):
    total = (total * 31 + number) % 1000003
print(best, len(counts), point.x, point.y, total, 3 ** 2000 % 10 ** 20)
";

/// Tables, an index, joins and sums.
pub(crate) const SQL: &str = "\
create table item(id integer primary key, kind integer, price real, name text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 40000)
  insert into item select i, i * 7919 % 97, i * 31 % 1009 / 8.0, 'item ' || (i * 104729 % 40009) from n;
create index by_kind on item(kind, price);
create table kind(id integer primary key, name text);
insert into kind select distinct kind, 'kind ' || kind from item;
select kind.name, count(*), round(sum(price), 3) from item join kind on kind.id = item.kind
  group by kind.id order by 3 desc limit 10;
select count(*), max(name) from item where name like '%99%' and price > 10;
select sum(length(a.name)) from item a join item b on b.id = a.id * 13 % 40000 where a.kind <> b.kind;
update item set price = price * 1.1 where kind % 3 = 0;
select round(avg(price), 6) from item;
";

/// A C program, already preprocessed: functions of loops, arrays and conditions.
pub(crate) fn c() -> String {
    let mut random = Random(2);
    let mut program = String::from("struct node { struct node *next; int key; double weight; };\n");
    for function in 0..12 {
        let (a, b, c) = (1 + random.below(30), 1 + random.below(30), 2 + random.below(6));
        let _ = write!(
            program,
            "int work{function}(int *numbers, int count, struct node *list)\n{{\n\
             \x20 int i, j, sum = {a};\n\
             \x20 for (i = 0; i < count; i++) {{\n\
             \x20   if (numbers[i] % {c} == 0) sum += numbers[i] * {b};\n\
             \x20   else for (j = i; j < count && j < i + {c}; j++) numbers[j] ^= sum >> (j & 7);\n\
             \x20   switch (sum & 7) {{ case 0: sum ^= {a}; break; case 1: sum += i; case 3: sum -= {b}; break;\n\
             \x20     case 6: sum = sum / {c} + 1; break; default: sum++; }}\n\
             \x20 }}\n\
             \x20 for (; list; list = list->next) {{ list->weight = list->weight * {a}.5 + list->key; sum += list->key; }}\n\
             \x20 return sum;\n}}\n",
        );
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_the_same_every_time() {
        assert!(text() == text() && c() == c());
        assert!(text().len() >= 2 << 20);
    }
}
