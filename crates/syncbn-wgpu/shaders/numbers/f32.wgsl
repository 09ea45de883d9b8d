// f32: its bits are what is stored.

const SCALES: bool = true;
