//! Foreign files in and out of tables: CSV and NPY
